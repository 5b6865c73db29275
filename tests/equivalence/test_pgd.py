"""PGD and FGM against their definition: gradient, step and projection of each text in a loop, two label losses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dummies import LogitPenalty
from equivalence.perturbed_line import (
    from_embedded,
    gradient_at,
    into_ball,
    lengths,
    looked_up,
    typical,
    unit_direction,
)
from equivalence.straight_line import (
    CLOSE,
    RANK,
    SEED,
    batch,
    cross_entropy,
    dropout_of,
    gradients,
    tiny_bert,
    trained,
)
from steadytune import RegularizedModel
from steadytune.functional import keyed_generator, keyed_seed
from steadytune.methods import MethodError
from steadytune.methods.pgd import PGD

SETTINGS: dict[str, PGD] = {
    "defaults": PGD(),
    "fgm": PGD(steps=1),
    "fgm, absolute": PGD(steps=1, epsilon=0.4, relative=False),
    "large, absolute": PGD(epsilon=2.0, relative=False),
    "short steps": PGD(step_size=0.25),
    "long steps": PGD(steps=2, step_size=3.0),
    "five steps": PGD(steps=5, epsilon=1.0),
    "random": PGD(direction="random"),
    "random, short of the radius": PGD(direction="random", steps=2, step_size=0.25),
    "random fgm": PGD(direction="random", steps=1),
    "special tokens stay": PGD(perturb_special=False),
    "special tokens stay, random": PGD(perturb_special=False, direction="random"),
    "fresh dropout": PGD(dropout="fresh"),
    "nothing moves": PGD(epsilon=0),
    "nothing moves, fresh dropout": PGD(epsilon=0, dropout="fresh"),
}


def straight_offset(model: Any, data: dict[str, Tensor], clean_loss: Tensor, e: Tensor, pgd: PGD, step: int) -> Tensor:
    """r after all steps; probes run with the dropout that is in force when this is called."""
    offset, start = torch.zeros_like(e, requires_grad=False), torch.get_rng_state()
    drawn = torch.empty_like(offset).normal_(
        generator=keyed_generator("cpu", SEED, "pgd", step, RANK, "loss", "direction")
    )
    size = pgd.epsilon * (1 if pgd.steps == 1 else 0.5 if pgd.step_size is None else pgd.step_size)
    for taken in range(pgd.steps):
        if pgd.direction == "random":
            gradient = drawn
        elif taken == 0:
            gradient = gradient_at(clean_loss, e)
        else:
            moved = (e + offset).detach().requires_grad_()
            with dropout_of(start):
                loss = cross_entropy(from_embedded(model, data, moved).logits, data["labels"])
            gradient = gradient_at(loss, moved)
        for text, length in enumerate(lengths(data)):
            tokens = slice(length) if pgd.perturb_special else slice(1, length - 1)
            unit = typical(e[text, :length], "l2") if pgd.relative else 1.0
            climbed = offset[text, tokens] + size * unit * unit_direction(gradient[text, tokens], "l2")
            offset[text, tokens] = into_ball(climbed, pgd.epsilon * unit, "l2")
    return offset


def straight_loss(model: Any, pgd: PGD, step: int) -> Tensor:
    """Mean of the two label losses."""
    data, start = batch(step), torch.get_rng_state()
    e = looked_up(model, data)
    clean_loss = cross_entropy(from_embedded(model, data, e).logits, data["labels"])
    offset = torch.zeros_like(e, requires_grad=False)
    if pgd.epsilon > 0:
        with dropout_of(start):
            offset = straight_offset(model, data, clean_loss, e, pgd, step)
    with dropout_of(start if pgd.dropout == "as clean" else keyed_seed(SEED, "dropout", "pgd", step, RANK)):
        perturbed = cross_entropy(from_embedded(model, data, looked_up(model, data) + offset).logits, data["labels"])
    return (clean_loss + perturbed) / 2


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", SETTINGS)
def test_value_and_gradient_equal_the_definition(name: str, dropout: float) -> None:
    pgd = SETTINGS[name]
    wrapper, by_hand = RegularizedModel(tiny_bert(dropout), [pgd], seed=SEED), tiny_bert(dropout)
    for step in range(2):
        torch.manual_seed(step)
        found = wrapper(**batch(step))
        found.loss.backward()
        torch.manual_seed(step)
        expected = straight_loss(by_hand, pgd, step)
        expected.backward()
        torch.testing.assert_close(found.loss.detach(), expected.detach(), **CLOSE)
        torch.testing.assert_close(
            gradients(wrapper.named_parameters()),
            {f"model.{name}": gradient for name, gradient in gradients(by_hand.named_parameters()).items()},
            **CLOSE,
        )
        wrapper.zero_grad()
        by_hand.zero_grad()


@pytest.mark.parametrize("name", ["defaults", "fgm", "random"])
def test_the_gradient_is_the_same_beside_a_method_that_needs_the_clean_pass(name: str) -> None:
    found = []
    for methods in ([SETTINGS[name]], [SETTINGS[name], LogitPenalty(weight=0.0)]):
        wrapper = RegularizedModel(tiny_bert(0.1), methods, seed=SEED)
        torch.manual_seed(0)
        wrapper(**batch()).loss.backward()
        found.append(gradients(wrapper.named_parameters()))
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_accumulated_batches_have_the_gradient_of_the_whole() -> None:
    data, found = batch(), []
    for sizes in ([6], [4, 1, 1]):
        wrapper = RegularizedModel(tiny_bert(0.0), [PGD()], seed=SEED)
        parts = {name: value.split(sizes) for name, value in data.items()}
        for output in wrapper.accumulate([{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]):
            output.loss.backward()
        found.append(gradients(wrapper.named_parameters()))
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_a_pass_that_nothing_moves_is_plain_fine_tuning_at_twice_the_cost() -> None:
    plain, twice = (RegularizedModel(tiny_bert(0.1), methods, seed=SEED) for methods in ([], [PGD(epsilon=0)]))
    for wrapper in (plain, twice):
        torch.manual_seed(0)
        out = wrapper(**batch())
        out.loss.backward()
    assert out.passes.units == 6
    torch.testing.assert_close(gradients(plain.named_parameters()), gradients(twice.named_parameters()), **CLOSE)


@pytest.mark.parametrize(("steps", "units"), [(1, 6), (2, 8), (3, 10), (5, 14)])
def test_k_steps_cost_2k_plus_4_units(steps: int, units: int) -> None:
    assert RegularizedModel(tiny_bert(0.1), [PGD(steps=steps)])(**batch()).passes.units == units


def test_one_step_costs_seven_units_where_another_method_needs_the_clean_graph() -> None:
    stack = [PGD(steps=1), LogitPenalty()]
    assert RegularizedModel(tiny_bert(0.1), stack)(**batch()).passes.units == 7


def test_a_random_direction_costs_no_probe() -> None:
    passes = RegularizedModel(tiny_bert(0.1), [PGD(direction="random")])(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (2, 2, 2)


def test_a_random_direction_raises_the_loss_less() -> None:
    rises = [
        float(
            RegularizedModel(tiny_bert(0.0), [PGD(direction=direction)], seed=SEED)(**batch()).telemetry[
                "pgd/loss_rise"
            ]
        )
        for direction in ("random", "gradient")
    ]
    assert rises[0] < rises[1]


def test_telemetry_has_the_rise_the_size_and_the_share_of_still_examples() -> None:
    pgd, data = PGD(steps=1, epsilon=0.4, relative=False), batch()
    data["labels"][3] = -100
    telemetry = RegularizedModel(tiny_bert(0.0), [pgd], seed=SEED)(**data).telemetry
    e = looked_up(tiny_bert(0.0), data).detach()
    norms = [float(e[text, :length].norm()) for text, length in enumerate(lengths(data))]
    shares = [0.4 / norm for norm in norms]
    shares[3] = 0
    assert float(telemetry["pgd/relative_size"]) == pytest.approx(sum(shares) / 6, rel=1e-6)
    assert float(telemetry["pgd/zero_perturbation_fraction"]) == pytest.approx(1 / 6)
    assert telemetry["pgd/loss_rise"] > 0


def test_a_frozen_matrix_can_be_perturbed() -> None:
    models = [tiny_bert(0.1) for _ in range(2)]
    models[1].bert.embeddings.word_embeddings.weight.requires_grad_(False)
    found = []
    for model in models:
        torch.manual_seed(0)
        RegularizedModel(model, [PGD()], seed=SEED)(**batch()).loss.backward()
        found.append(gradients(model.named_parameters()))
    del found[0]["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_a_step_size_for_one_step_is_refused() -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.0), [PGD(steps=1, step_size=0.5)])
    assert str(caught.value) == (
        "pgd.step_size does nothing at steps 1, where the step is epsilon itself; leave it null."
    )


def test_embeddings_in_place_of_ids_are_refused() -> None:
    model, data = tiny_bert(0.0), batch()
    data["inputs_embeds"] = looked_up(model, data).detach()
    del data["input_ids"]
    with pytest.raises(
        MethodError, match=r"^pgd needs input_ids: it perturbs the word embeddings, which inputs_embeds"
    ):
        RegularizedModel(model, [PGD()])(**data)


def test_a_perturbation_that_16_bit_embeddings_round_away_is_refused() -> None:
    with pytest.raises(MethodError, match=r"^pgd\.epsilon is rounded away by the bfloat16 embeddings"):
        RegularizedModel(tiny_bert(0.0, torch.bfloat16), [PGD(epsilon=1e-4)])(**batch())


def test_it_says_when_the_loss_hardly_rises_and_when_examples_stay() -> None:
    said = PGD().judge({"loss_rise": 0.001, "zero_perturbation_fraction": 0.25})
    assert len(said) == 2
    assert said[0].startswith("pgd: the gradient of 25.0% of the examples was 0 or not finite")
    assert said[1].startswith("pgd: the perturbation raises the label loss by only 1.0e-03")
    assert PGD().judge({"loss_rise": 0.1, "zero_perturbation_fraction": 0.0}) == []
    assert PGD(direction="random").judge({"loss_rise": 0.001}) == []


def test_training_moves_the_weights_as_the_definition_does() -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(0.1), [PGD()], seed=SEED), tiny_bert(0.1)
    found = trained(wrapper, lambda data: wrapper(**data).loss, steps=2)
    numbers = iter(range(2))
    expected = trained(by_hand, lambda data: straight_loss(by_hand, PGD(), next(numbers)), steps=2)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(found[f"model.{name}"], value, **CLOSE)
    torch.testing.assert_close(found["losses"], expected["losses"], **CLOSE)
