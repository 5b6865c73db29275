"""SMART and VAT against their definitions: the inner maximization of each text in a loop, and a moving teacher."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

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
    Seen,
    batch,
    cross_entropy,
    dropout_of,
    gradients,
    tiny_bert,
)
from steadytune import RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import keyed_generator, keyed_seed
from steadytune.methods import MethodError
from steadytune.methods.smart import SMART
from tiny import rows_of, tiny_batch, tiny_model

VAT: dict[str, Any] = {
    "target": "clean",
    "norm": "l2",
    "inner": "power",
    "epsilon": 0.3,
    "initial_std": 0.1,
    "bregman": 0.0,
}
SETTINGS: dict[str, SMART] = {
    "defaults": SMART(epsilon=0.2),
    "weights": SMART(weight=2.5, bregman=0.3, epsilon=0.2),
    "absolute": SMART(epsilon=0.1, initial_std=0.05, relative=False),
    "two steps": SMART(epsilon=0.2, steps=2, step_size=0.5),
    "short step": SMART(epsilon=0.2, step_size=0.3),
    "length of a text": SMART(epsilon=0.5, norm="l2"),
    "step without the start": SMART(epsilon=0.2, inner="power"),
    "one direction": SMART(epsilon=0.2, target="clean"),
    "fresh dropout": SMART(epsilon=0.2, dropout="fresh"),
    "fresh dropout alone": SMART(epsilon=0, dropout="fresh"),
    "random": SMART(epsilon=0.2, direction="random"),
    "teacher alone": SMART(epsilon=0),
    "no teacher": SMART(epsilon=0.2, bregman=0),
    "slow teacher": SMART(epsilon=0.2, momentum=0.9, momentum_early=0.5, early_fraction=0.5),
    "teacher of one momentum": SMART(epsilon=0.2, momentum=0.7, early_fraction=0),
    "vat": SMART(**VAT),
    "vat, three iterations": SMART(**VAT, steps=3),
    "vat, absolute": SMART(**{**VAT, "epsilon": 1.0}, relative=False),
    "vat, random": SMART(**VAT, direction="random"),
}
TOTAL, RATE = 6, 0.05


def directed(one: Tensor, other: Tensor) -> Tensor:
    p, q = one.softmax(dim=-1), other.softmax(dim=-1)
    return (p * (p / q).log()).sum(dim=-1).mean()


def both_ways(one: Tensor, other: Tensor) -> Tensor:
    return directed(one, other) + directed(other, one)


def straight_offset(model: Any, data: dict[str, Tensor], clean: Seen, smart: SMART, step: int) -> Tensor:
    """r; probes run with the dropout that is in force when this is called."""
    e, start, sizes = looked_up(model, data).detach(), torch.get_rng_state(), lengths(data)
    units = [
        float(typical(e[text, :length], smart.norm)) if smart.relative else 1.0 for text, length in enumerate(sizes)
    ]
    drawn, chance = (
        torch.empty_like(e).normal_(generator=keyed_generator("cpu", SEED, "smart", step, RANK, "loss", name))
        for name in ("start", "direction")
    )
    offset, form = torch.zeros_like(e), both_ways if smart.target == "symmetric" else directed
    for text, length in enumerate(sizes):
        begin = drawn[text, :length]
        begin = unit_direction(begin, "l2") if smart.norm == "l2" else begin
        offset[text, :length] = smart.initial_std * units[text] * begin
    for taken in range(smart.steps):
        gradient = chance
        if smart.direction == "gradient":
            moved = (e + offset).requires_grad_()
            with dropout_of(start):
                seen = from_embedded(model, data, moved)
            gradient = gradient_at(form(clean.logits.detach(), seen.logits), moved)
        for text, length in enumerate(sizes):
            ascent = unit_direction(gradient[text, :length], smart.norm)
            if smart.inner == "ascent":
                climbed = offset[text, :length] + (smart.step_size or 100) * smart.epsilon * units[text] * ascent
                offset[text, :length] = into_ball(climbed, smart.epsilon * units[text], smart.norm)
            else:
                last = taken == smart.steps - 1
                offset[text, :length] = (smart.epsilon if last else smart.initial_std) * units[text] * ascent
    return offset


def straight_loss(model: Any, smart: SMART, data: dict[str, Tensor], step: int, teacher: dict[str, Tensor]) -> Tensor:
    """Label loss, smoothness and distance to the teacher, each with its weight."""
    start = torch.get_rng_state()
    clean = from_embedded(model, data, looked_up(model, data))
    loss = cross_entropy(clean.logits, data["labels"])
    if smart.epsilon > 0 or smart.dropout == "fresh":
        offset = torch.zeros(())
        if smart.epsilon > 0:
            with dropout_of(start):
                offset = straight_offset(model, data, clean, smart, step)
        with dropout_of(start if smart.dropout == "as clean" else keyed_seed(SEED, "dropout", "smart", step, RANK)):
            other = from_embedded(model, data, looked_up(model, data) + offset)
        form, anchor = (both_ways, clean.logits) if smart.target == "symmetric" else (directed, clean.logits.detach())
        loss = loss + smart.weight * form(anchor, other.logits)
    if smart.bregman > 0:
        with dropout_of(start), torch.no_grad():
            taught = functional_call(model, teacher, (), {k: v for k, v in data.items() if k != "labels"}).logits
        loss = loss + smart.bregman * both_ways(clean.logits, taught)
    return loss


def copied(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def follow(teacher: dict[str, Tensor], model: Any, smart: SMART, update: int) -> None:
    beta = smart.momentum_early if update < smart.early_fraction * TOTAL else smart.momentum
    for name, parameter in model.named_parameters():
        teacher[name] = beta * teacher[name] + (1 - beta) * parameter.detach()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_gradients_weights_and_teacher_equal_the_definition_over_several_updates(
    name: str, dropout: float
) -> None:
    smart = SETTINGS[name]
    wrapper, by_hand = RegularizedModel(tiny_bert(dropout), [smart], seed=SEED), tiny_bert(dropout)
    ours = torch.optim.SGD(wrapper.parameter_groups(lr=RATE))
    theirs, teacher = torch.optim.SGD(by_hand.parameters(), lr=RATE), copied(by_hand)
    wrapper.attach(ours, total_updates=TOTAL)
    for step in range(4):
        torch.manual_seed(step)
        found = wrapper(**batch(step))
        found.loss.backward()
        torch.manual_seed(step)
        expected = straight_loss(by_hand, smart, batch(step), step, teacher)
        expected.backward()
        torch.testing.assert_close(found.loss.detach(), expected.detach(), **CLOSE)
        torch.testing.assert_close(
            gradients(wrapper.model.named_parameters()), gradients(by_hand.named_parameters()), **CLOSE
        )
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        follow(teacher, by_hand, smart, step)
    torch.testing.assert_close(copied(wrapper.model), copied(by_hand), **CLOSE)
    kept = {name.removeprefix("smart.").replace("/", "."): b for name, b in wrapper.method_modules.named_buffers()}
    torch.testing.assert_close(kept, teacher if smart.bregman > 0 else {}, **CLOSE)


def test_an_update_over_accumulated_batches_weighs_them_by_their_texts_and_moves_the_teacher_once() -> None:
    smart, sizes = SETTINGS["slow teacher"], [4, 1, 1]
    wrapper, by_hand = RegularizedModel(tiny_bert(0.1), [smart], seed=SEED), tiny_bert(0.1)
    ours = torch.optim.SGD(wrapper.parameter_groups(lr=RATE))
    theirs, teacher = torch.optim.SGD(by_hand.parameters(), lr=RATE), copied(by_hand)
    wrapper.attach(ours, total_updates=TOTAL)
    for update in range(2):
        parts = rows_of(batch(update), sizes)
        torch.manual_seed(update)
        for output in wrapper.accumulate(parts):
            output.loss.backward()
        torch.manual_seed(update)
        for part, size, step in zip(parts, sizes, range(3 * update, 3 * update + 3), strict=True):
            (size / 6 * straight_loss(by_hand, smart, part, step, teacher)).backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        follow(teacher, by_hand, smart, update)
    torch.testing.assert_close(copied(wrapper.model), copied(by_hand), **CLOSE)
    kept = {name.removeprefix("smart.").replace("/", "."): b for name, b in wrapper.method_modules.named_buffers()}
    torch.testing.assert_close(kept, teacher, **CLOSE)


@pytest.mark.parametrize("name", ["defaults", "vat"])
def test_the_term_needs_no_label(name: str) -> None:
    terms = []
    for label in (0, -100):
        wrapper = RegularizedModel(tiny_bert(0.1), [SETTINGS[name]], seed=SEED)
        if SETTINGS[name].acts_on_updates:
            wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=RATE)), total_updates=TOTAL)
        torch.manual_seed(0)
        terms.append(wrapper(**{**batch(), "labels": torch.full((6,), label)}).terms["smart"])
    assert torch.equal(*terms)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, (4, 3, 2)),
        ({"steps": 3}, (6, 5, 2)),
        ({"bregman": 0}, (3, 3, 2)),
        (VAT, (3, 3, 2)),
        ({"epsilon": 0}, (2, 1, 1)),
        ({"direction": "random"}, (3, 2, 2)),
        ({"epsilon": 0, "dropout": "fresh", "bregman": 0}, (2, 2, 2)),
    ],
)
def test_number_of_passes(settings: dict[str, Any], passes: tuple[int, int, int]) -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [SMART(**settings)])
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=RATE)), total_updates=TOTAL)
    found = wrapper(**batch()).passes
    assert (found.forward, found.activation_gradient, found.weight_gradient) == passes


@pytest.mark.parametrize("settings", [{"weight": 0}, {"epsilon": 0, "bregman": 0}])
def test_without_any_term_it_is_not_active(settings: dict[str, Any]) -> None:
    assert not SMART(**settings).active


def test_the_ascent_raises_the_divergence_more_than_a_random_direction() -> None:
    found = []
    for direction in ("random", "gradient"):
        smart: Any = SMART(bregman=0, direction=direction)
        out = RegularizedModel(tiny_bert(0.0), [smart], seed=SEED)(**batch())
        found.append(float(out.telemetry["smart/smoothness"]))
    assert found[0] < found[1]


def test_a_prediction_of_one_class_only_gives_no_perturbation_and_a_sentence() -> None:
    model: Any = tiny_bert(0.0)
    with torch.no_grad():
        model.classifier.weight.zero_()
    out = RegularizedModel(model, [SMART(bregman=0)], seed=SEED)(**batch())
    assert float(out.telemetry["smart/zero_perturbation_fraction"]) == 1
    assert float(out.terms["smart"]) == 0
    (said,) = SMART().judge({"zero_perturbation_fraction": 1.0})
    assert said.startswith("smart: the gradient of 100.0% of the examples was 0 or not finite")


def test_a_gradient_that_is_not_a_number_gives_no_perturbation() -> None:
    def spoil(module: Any, args: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient * torch.nan)

    model: Any = tiny_bert(0.0)
    model.bert.embeddings.LayerNorm.register_forward_hook(spoil)
    out = RegularizedModel(model, [SMART(bregman=0)], seed=SEED)(**batch())
    assert float(out.telemetry["smart/zero_perturbation_fraction"]) == 1
    assert float(out.terms["smart"]) == 0


def test_for_regression_both_terms_are_squared_differences() -> None:
    model: Any = tiny_model("bert", num_labels=1, dropout=0.0, dtype=torch.float64)
    wrapper = RegularizedModel(model, [SMART(epsilon=0.2)])
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=RATE)), total_updates=TOTAL)
    with torch.no_grad():
        model.classifier.bias.add_(0.5)  # the teacher stays behind
    out = wrapper(**tiny_batch("bert", regression=True))
    assert float(out.telemetry["smart/teacher_distance"]) == pytest.approx(0.25)
    assert float(out.terms["smart"]) == pytest.approx(float(out.telemetry["smart/smoothness"]) + 0.25)


def test_a_teacher_needs_the_length_of_training_only_if_its_momentum_changes() -> None:
    def attach(**settings: Any) -> None:
        wrapper = RegularizedModel(tiny_bert(0.0), [SMART(**settings)])
        wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=RATE)))

    with pytest.raises(MethodError) as caught:
        attach()
    assert str(caught.value) == "smart must know the length of training; give attach() total_updates."
    attach(early_fraction=0)
    attach(bregman=0)


def test_a_teacher_under_gradient_checkpointing_is_refused_and_the_rest_is_not() -> None:
    model: Any = tiny_bert(0.1)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(SiteUnavailable) as caught:
        RegularizedModel(model, [SMART()])
    assert str(caught.value) == (
        "smart needs the site 'weights', which bert lacks: gradient checkpointing would compute its layers again with "
        "other weights; switch it off."
    )
    found = []
    for other in (model, tiny_bert(0.1)):
        torch.manual_seed(0)
        RegularizedModel(other, [SMART(bregman=0)], seed=SEED)(**batch()).loss.backward()
        found.append(gradients(other.named_parameters()))
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_the_teacher_holds_trainable_weights_in_float32() -> None:
    model: Any = tiny_bert(0.1, torch.bfloat16)
    model.bert.embeddings.requires_grad_(False)
    wrapper = RegularizedModel(model, [SMART()])
    kept = dict(wrapper.method_modules.named_buffers())
    assert {buffer.dtype for buffer in kept.values()} == {torch.float32}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.removeprefix("smart.").replace("/", ".") for name in kept} == trained
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=RATE)), total_updates=TOTAL)
    out = wrapper(**batch())
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert float(out.telemetry["smart/teacher_distance"]) == 0


def test_beside_another_method_the_clean_pass_is_shared() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [SMART(bregman=0), LogitPenalty()])
    assert wrapper(**batch()).passes.units == 8


def test_embeddings_in_place_of_ids_are_refused() -> None:
    model, data = tiny_bert(0.0), batch()
    data["inputs_embeds"] = looked_up(model, data).detach()
    del data["input_ids"]
    with pytest.raises(MethodError, match=r"^smart needs input_ids"):
        RegularizedModel(model, [SMART(bregman=0)])(**data)


@pytest.mark.parametrize("early", [{"momentum_early": 0.0}, {"early_fraction": 0.0}])
def test_a_teacher_that_is_always_the_model_is_refused(early: dict[str, float]) -> None:
    with pytest.raises(MethodError, match=r"^smart\.momentum 0 keeps the teacher equal to the model"):
        RegularizedModel(tiny_bert(0.0), [SMART(momentum=0.0, **early)])  # type: ignore[arg-type]
    RegularizedModel(tiny_bert(0.0), [SMART(momentum=0.0)])


def test_a_step_size_of_power_iterations_is_refused() -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.0), [SMART(inner="power", step_size=1.0)])
    assert str(caught.value) == ("smart.step_size does nothing at inner: power, which ends at epsilon; leave it null.")


def patterned(like: Tensor, scale: float, *_: Any) -> Tensor:
    """One draw for all tokens that the LayerNorm behind the embeddings does not take out, as it would a constant."""
    return scale * torch.arange(like.shape[-1], dtype=like.dtype).cos().expand(like.shape)


def without_chance(smart: SMART, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    wrapper = RegularizedModel(tiny_bert(0.0), [smart], seed=SEED)
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=RATE)), total_updates=TOTAL)
    losses = []
    for output in wrapper.accumulate(parts):
        output.loss.backward()
        losses.append(output.loss.detach())
    return {"loss": torch.stack(losses).sum(), **gradients(wrapper.model.named_parameters())}


@pytest.mark.parametrize("name", ["defaults", "two steps", "vat", "vat, three iterations"])
def test_padding_order_and_split_of_a_batch_do_not_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadytune.methods.smart.draw_noise", patterned)
    data, order = batch(), [3, 1, 5, 0, 2, 4]
    longer = {key: torch.nn.functional.pad(data[key], (0, 4)) for key in ("input_ids", "attention_mask")}
    expected = without_chance(SETTINGS[name], [data])
    for parts in (
        [{**longer, "labels": data["labels"]}],
        [{key: value[order] for key, value in data.items()}],
        rows_of(data, [3, 2, 1]),
    ):
        torch.testing.assert_close(without_chance(SETTINGS[name], parts), expected, **CLOSE)
