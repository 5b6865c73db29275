"""FreeLB against its definition: K passes with one dropout along a path, the mean of their label losses."""

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
    WIDTH,
    batch,
    cross_entropy,
    dropout_of,
    gradients,
    tiny_bert,
    trained,
)
from steadytune import RegularizedModel
from steadytune.functional import keyed_generator
from steadytune.methods import MethodError
from steadytune.methods.freelb import FreeLB

SETTINGS: dict[str, FreeLB] = {
    "defaults": FreeLB(),
    "one pass, random start": FreeLB(steps=1, initial_size=1.0),
    "start at zero": FreeLB(initial_size=0),
    "without projection": FreeLB(step_size=0.5, epsilon=0),
    "small ball": FreeLB(step_size=0.5, epsilon=0.2),
    "relative": FreeLB(relative=True, step_size=0.3, epsilon=0.4, initial_size=0.5),
    "relative without projection": FreeLB(relative=True, epsilon=0),
    "five passes": FreeLB(steps=5),
    "random": FreeLB(direction="random"),
    "random, start at zero": FreeLB(direction="random", initial_size=0, step_size=0.3),
}


def stream(step: int, name: str) -> torch.Generator:
    return keyed_generator("cpu", SEED, "freelb", step, RANK, "loss", name)


def straight_losses(model: Any, data: dict[str, Tensor], freelb: FreeLB, step: int) -> list[Tensor]:
    """The label loss at every point of the path."""
    e, start = looked_up(model, data), torch.get_rng_state()
    offset = torch.empty_like(e, requires_grad=False)
    offset.uniform_(-freelb.initial_size, freelb.initial_size, generator=stream(step, "start"))
    chance = torch.empty_like(e, requires_grad=False).normal_(generator=stream(step, "direction"))
    units = [float(typical(e[i, :n], "l2")) if freelb.relative else 1.0 for i, n in enumerate(lengths(data))]
    for text, length in enumerate(lengths(data)):
        offset[text] *= units[text] / (length * WIDTH) ** 0.5
        offset[text, length:] = 0
    losses: list[Tensor] = []
    for taken in range(freelb.steps):
        moved = looked_up(model, data) + offset
        if taken == 0:
            seen = from_embedded(model, data, moved)
        else:
            with dropout_of(start):
                seen = from_embedded(model, data, moved)
        losses.append(cross_entropy(seen.logits, data["labels"]))
        gradient = chance if freelb.direction == "random" else gradient_at(losses[-1], moved)
        for text, length in enumerate(lengths(data)):
            climbed = offset[text, :length] + freelb.step_size * units[text] * unit_direction(
                gradient[text, :length], "l2"
            )
            bound = freelb.epsilon * units[text] if freelb.epsilon else torch.inf
            offset[text, :length] = into_ball(climbed, bound, "l2")
    return losses


def straight_loss(model: Any, freelb: FreeLB, step: int) -> Tensor:
    return torch.stack(straight_losses(model, batch(step), freelb, step)).mean()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", SETTINGS)
def test_value_and_gradient_equal_the_definition(name: str, dropout: float) -> None:
    freelb = SETTINGS[name]
    wrapper, by_hand = RegularizedModel(tiny_bert(dropout), [freelb], seed=SEED), tiny_bert(dropout)
    for step in range(2):
        torch.manual_seed(step)
        found = wrapper(**batch(step))
        found.loss.backward()
        torch.manual_seed(step)
        expected = straight_loss(by_hand, freelb, step)
        expected.backward()
        torch.testing.assert_close(found.loss.detach(), expected.detach(), **CLOSE)
        torch.testing.assert_close(
            gradients(wrapper.model.named_parameters()), gradients(by_hand.named_parameters()), **CLOSE
        )
        wrapper.zero_grad()
        by_hand.zero_grad()


def test_training_moves_the_weights_as_the_definition_does() -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(0.1), [FreeLB()], seed=SEED), tiny_bert(0.1)
    found = trained(wrapper, lambda data: wrapper(**data).loss, steps=2)
    numbers = iter(range(2))
    expected = trained(by_hand, lambda data: straight_loss(by_hand, FreeLB(), next(numbers)), steps=2)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(found[f"model.{name}"], value, **CLOSE)
    torch.testing.assert_close(found["losses"], expected["losses"], **CLOSE)
    assert torch.equal(found["random"], expected["random"])


def test_accumulated_batches_have_the_gradient_of_the_whole() -> None:
    data, found = batch(), []
    for sizes in ([6], [4, 1, 1]):
        wrapper = RegularizedModel(tiny_bert(0.0), [FreeLB(initial_size=0)], seed=SEED)
        parts = {name: value.split(sizes) for name, value in data.items()}
        for output in wrapper.accumulate([{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]):
            output.loss.backward()
        found.append(gradients(wrapper.named_parameters()))
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_one_pass_from_zero_is_plain_fine_tuning_bit_for_bit() -> None:
    plain, one = (
        trained(wrapper, lambda data, wrapper=wrapper: wrapper(**data).loss)  # type: ignore[misc]
        for wrapper in (
            RegularizedModel(tiny_bert(0.1), methods, seed=SEED) for methods in ([], [FreeLB(steps=1, initial_size=0)])
        )
    )
    assert plain.keys() == one.keys()
    assert all(torch.equal(value, one[name]) for name, value in plain.items())


def test_one_pass_from_nearly_zero_is_plain_fine_tuning() -> None:
    plain, one = (
        RegularizedModel(tiny_bert(0.1), methods, seed=SEED) for methods in ([], [FreeLB(steps=1, initial_size=1e-300)])
    )
    for wrapper in (plain, one):
        torch.manual_seed(0)
        wrapper(**batch()).loss.backward()
    found = gradients(one.model.named_parameters())
    assert all(torch.equal(g, found[name]) for name, g in gradients(plain.model.named_parameters()).items())


@pytest.mark.parametrize("direction", ["gradient", "random"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_k_passes_cost_k_plain_steps(steps: int, direction: Any) -> None:
    passes = RegularizedModel(tiny_bert(0.1), [FreeLB(steps=steps, direction=direction)])(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (steps, steps, steps)


def test_a_method_that_needs_the_clean_pass_costs_one_more_with_the_same_dropout() -> None:
    model, data = tiny_bert(0.1), batch()
    torch.manual_seed(0)
    expected = tiny_bert(0.1)(**data).logits.square().sum(dim=-1).mean()
    wrapper = RegularizedModel(model, [FreeLB(), LogitPenalty()], seed=SEED)
    torch.manual_seed(0)
    out = wrapper(**data)
    assert out.passes.units == 12
    torch.testing.assert_close(out.terms["logit_penalty"], expected.detach(), **CLOSE)


def test_unlabelled_texts_are_not_perturbed() -> None:
    data = batch()
    data["labels"][3] = -100
    telemetry = RegularizedModel(tiny_bert(0.0), [FreeLB()], seed=SEED)(**data).telemetry
    assert float(telemetry["freelb/zero_perturbation_fraction"]) == pytest.approx(1 / 6)


def test_the_loss_rises_along_the_path_and_less_so_by_chance() -> None:
    rises = [
        float(
            RegularizedModel(tiny_bert(0.0), [FreeLB(direction=direction)], seed=SEED)(**batch()).telemetry[
                "freelb/loss_rise"
            ]
        )
        for direction in ("random", "gradient")
    ]
    assert rises[0] < rises[1]
    assert rises[1] > 0


def test_a_frozen_matrix_can_be_perturbed() -> None:
    models = [tiny_bert(0.1) for _ in range(2)]
    models[1].bert.embeddings.word_embeddings.weight.requires_grad_(False)
    found = []
    for model in models:
        torch.manual_seed(0)
        RegularizedModel(model, [FreeLB()], seed=SEED)(**batch()).loss.backward()
        found.append(gradients(model.named_parameters()))
    del found[0]["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_embeddings_in_place_of_ids_are_refused() -> None:
    model, data = tiny_bert(0.0), batch()
    data["inputs_embeds"] = looked_up(model, data).detach()
    del data["input_ids"]
    with pytest.raises(MethodError, match=r"^freelb needs input_ids"):
        RegularizedModel(model, [FreeLB()])(**data)


def test_it_says_when_examples_stay() -> None:
    (said,) = FreeLB().judge({"zero_perturbation_fraction": 0.5})
    assert said.startswith("freelb: the gradient of 50.0% of the examples was 0 or not finite")
