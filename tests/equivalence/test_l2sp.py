"""L2-SP beside a hand-written loop, as a pull after the optimizer step and as a penalty."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import CLOSE, SEED, batch, cross_entropy, forward, tiny_bert, trained
from steadytune import RegularizedModel
from steadytune.methods import MethodError
from steadytune.methods.l2sp import L2SP
from steadytune.methods.llrd import LLRD
from tiny import rows_of

RATE, DECAY, STEPS = 0.05, 0.1, 4
OPTIMIZERS: dict[str, Any] = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}
EITHER = pytest.mark.parametrize("kind", OPTIMIZERS)
SPLIT = pytest.mark.parametrize("sizes", [[6], [4, 2]], ids=str)
HEADS = pytest.mark.parametrize("head_weight", [0.0, 0.2])


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def is_new(name: str) -> bool:
    return name.startswith("classifier")


def plain_groups(model: nn.Module, head_weight: float) -> list[dict[str, Any]]:
    """Ordinary decay is left to a head that nothing else pulls."""
    named = dict(model.named_parameters())
    decayed = [n for n, p in named.items() if p.ndim > 1 and is_new(n) and head_weight == 0]
    return [
        {"params": [named[name] for name in decayed], "weight_decay": DECAY},
        {"params": [p for name, p in named.items() if name not in decayed], "weight_decay": 0.0},
    ]


def by_hand(l2sp: L2SP, kind: str, sizes: list[int]) -> dict[str, Tensor]:
    model = tiny_bert(0.1)
    start = values(model)
    optimizer = OPTIMIZERS[kind](plain_groups(model, l2sp.head_weight), lr=RATE)
    for step in range(STEPS):
        torch.manual_seed(step)
        for part in rows_of(batch(step), sizes):
            loss = cross_entropy(forward(model, part).logits, part["labels"])
            if l2sp.form == "penalty":
                for name, parameter in model.named_parameters():
                    if parameter.ndim > 1 and is_new(name):
                        loss = loss + l2sp.head_weight / 2 * (parameter**2).sum()
                    elif parameter.ndim > 1:
                        loss = loss + l2sp.weight / 2 * ((parameter - start[name]) ** 2).sum()
            (loss * len(part["labels"]) / 6).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in model.named_parameters() if l2sp.form == "decoupled" else ():
                if parameter.ndim > 1 and is_new(name):
                    parameter -= RATE * l2sp.head_weight * parameter
                elif parameter.ndim > 1:
                    parameter -= RATE * l2sp.weight * (parameter - start[name])
    return values(model)


def run(wrapper: RegularizedModel, optimizer: torch.optim.Optimizer, sizes: list[int], steps: int = STEPS) -> None:
    wrapper.attach(optimizer)
    for step in range(steps):
        torch.manual_seed(step)
        for out in wrapper.accumulate(rows_of(batch(step), sizes)):
            out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def wrapped(*methods: Any) -> RegularizedModel:
    return RegularizedModel(tiny_bert(0.1), methods, seed=SEED)


@EITHER
@SPLIT
@HEADS
@pytest.mark.parametrize("form", ["decoupled", "penalty"])
def test_weights_after_some_steps_are_those_of_a_hand_written_loop(
    form: Any, head_weight: float, sizes: list[int], kind: str
) -> None:
    l2sp = L2SP(form=form, weight=0.5, head_weight=head_weight)
    wrapper = wrapped(l2sp)
    run(wrapper, OPTIMIZERS[kind](wrapper.parameter_groups(RATE, DECAY), lr=RATE), sizes)
    torch.testing.assert_close(values(wrapper.model), by_hand(l2sp, kind, sizes), **CLOSE)


def test_the_penalty_is_half_the_squared_distance_and_its_share_of_the_head() -> None:
    wrapper = wrapped(L2SP(form="penalty", weight=0.5, head_weight=0.2))
    start = values(wrapper.model)
    with torch.no_grad():
        for parameter in wrapper.model.parameters():
            parameter.mul_(1.1)
    out, now = wrapper(**batch()), values(wrapper.model)
    matrices = [name for name, value in now.items() if value.ndim > 1]
    squares = sum(((now[name] - start[name]) ** 2).sum() for name in matrices if not is_new(name))
    of_head = sum((now[name] ** 2).sum() for name in matrices if is_new(name))
    torch.testing.assert_close(0.5 * out.terms["l2sp"], 0.5 / 2 * squares + 0.2 / 2 * of_head, **CLOSE)
    torch.testing.assert_close(out.loss.detach(), out.task_loss + 0.5 * out.terms["l2sp"], **CLOSE)
    assert float(out.telemetry["l2sp/distance"]) == pytest.approx(float(squares) ** 0.5)


def test_the_decoupled_form_has_no_term() -> None:
    wrapper = wrapped(L2SP())
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE))
    out = wrapper(**batch())
    assert out.terms == {} and torch.equal(out.loss.detach(), out.task_loss)


def test_the_decoupled_form_must_be_attached_and_the_penalty_need_not() -> None:
    with pytest.raises(MethodError, match=r"^l2sp acts in optimizer steps"):
        wrapped(L2SP())(**batch())
    assert torch.isfinite(wrapped(L2SP(form="penalty"))(**batch()).loss)


def test_each_matrix_is_pulled_with_its_own_learning_rate() -> None:
    wrapper = wrapped(L2SP(weight=0.5, head_weight=0.0), LLRD(decay=0.5))
    start = values(wrapper.model)
    run(wrapper, torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE), [6], steps=1)
    model = tiny_bert(0.1)
    torch.manual_seed(0)
    cross_entropy(forward(model, batch()).logits, batch()["labels"]).backward()
    name = "bert.encoder.layer.1.output.dense.weight"
    gradient, rate = model.get_parameter(name).grad, RATE * 0.5**2
    stepped = start[name] - rate * gradient
    expected = stepped - rate * 0.5 * (stepped - start[name])
    torch.testing.assert_close(values(wrapper.model)[name], expected, **CLOSE)


def test_where_it_pulls_there_is_no_other_weight_decay() -> None:
    for head_weight, decayed in ((0.2, set[str]()), (0.0, {"classifier.weight"})):
        wrapper = wrapped(L2SP(head_weight=head_weight))
        names = {id(parameter): name for name, parameter in wrapper.model.named_parameters()}
        groups = wrapper.parameter_groups(RATE, DECAY)
        assert {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]} == decayed


def test_an_optimizer_with_ordinary_weight_decay_is_refused() -> None:
    wrapper = wrapped(L2SP())
    with pytest.raises(MethodError, match=r"^the optimizer does not give .* build it from parameter_groups\(\)\.$"):
        wrapper.attach(torch.optim.AdamW(wrapper.model.parameters(), lr=RATE))


def test_only_matrices_of_the_encoder_are_anchored() -> None:
    wrapper = wrapped(L2SP())
    anchored = {name.replace("/", ".") for name, _ in wrapper.method_modules["l2sp"].named_buffers()} - {"pulled"}
    assert anchored == {n for n, p in wrapper.model.named_parameters() if p.ndim > 1 and n.startswith("bert.")}
    assert not list(wrapper.method_modules.parameters())


def test_weight_0_is_plain_training_bit_for_bit() -> None:
    plain, nothing = wrapped(), wrapped(L2SP(weight=0))
    expected = trained(plain, lambda data: plain(**data).loss)
    found = trained(nothing, lambda data: nothing(**data).loss)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_reports_the_distance_from_the_pre_trained_weights() -> None:
    wrapper = wrapped(L2SP(weight=0.5))
    start = values(wrapper.model)
    run(wrapper, torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE), [6], steps=1)
    now = values(wrapper.model)
    squares = [((now[n] - start[n]) ** 2).sum() for n in now if now[n].ndim > 1 and not is_new(n)]
    assert wrapper.drain_telemetry()["l2sp/distance"] == pytest.approx(float(sum(squares)) ** 0.5)


def test_a_resumed_run_is_pulled_to_where_the_first_one_began(tmp_path: Path) -> None:
    wrapper = wrapped(L2SP())
    start = values(wrapper.model)
    run(wrapper, torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE), [6])
    wrapper.save_state(tmp_path)
    model = tiny_bert(0.1)
    model.load_state_dict(wrapper.model.state_dict())
    again = RegularizedModel(model, [L2SP()], seed=SEED)
    again.load_state(tmp_path)
    buffers = dict(again.method_modules["l2sp"].named_buffers())
    assert float(buffers.pop("pulled")) == pytest.approx(STEPS * RATE * 0.01)
    for name, anchor in buffers.items():
        assert torch.equal(anchor, start[name.replace("/", ".")])


@pytest.mark.parametrize(("weight", "said"), [(0.04, True), (0.06, False)])  # four steps at a rate of 0.05
def test_pulls_that_come_to_next_to_nothing_are_said_at_the_end(weight: float, said: bool) -> None:
    wrapper = wrapped(L2SP(weight=weight))
    optimizer = torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE)
    wrapper.attach(optimizer, total_updates=4)
    for step in range(4):
        wrapper(**batch(step)).loss.backward()
        optimizer.step()
    text = (
        "l2sp: all 4 pulls together took away 0.008 of the distance to the pre-trained weights, which is next to "
        "nothing; raise l2sp.weight."
    )
    assert (text in wrapper.notices) is said


def test_it_costs_no_pass() -> None:
    passes = wrapped(L2SP(form="penalty"))(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)


def test_a_pull_that_16_bit_weights_would_round_away_is_refused() -> None:
    with pytest.raises(MethodError, match=r"^l2sp with form 'decoupled' is rounded away by 16-bit weights"):
        RegularizedModel(tiny_bert(0.1, torch.bfloat16), [L2SP()])
    half = RegularizedModel(tiny_bert(0.1, torch.bfloat16), [L2SP(form="penalty")])
    assert {anchor.dtype for anchor in half.method_modules["l2sp"].buffers()} == {torch.float32}
    assert half(**batch()).terms["l2sp"].dtype == torch.float32


def test_a_frozen_encoder_is_refused() -> None:
    model = tiny_bert(0.1)
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^l2sp cannot act on a frozen encoder"):
        RegularizedModel(model, [L2SP()])


def test_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_bert(0.1), peft.LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(MethodError, match=r"^l2sp cannot act on a model with adapters"):
        RegularizedModel(model, [L2SP()])
