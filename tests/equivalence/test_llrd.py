"""Learning rates by depth, beside factors written out by name and a hand-written loop."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import CLOSE, DEPTH, SEED, batch, cross_entropy, forward, tiny_bert, trained
from steadytune import RegularizedModel
from steadytune.methods import MethodError
from steadytune.methods.llrd import LLRD
from tiny import rows_of, tiny_model

RATE, STEPS = 0.05, 4
EVERY_START = pytest.mark.parametrize("start", ["top", "below"])


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def factor(name: str, llrd: LLRD, depth: int = DEPTH) -> float:
    """ξ^(n − i) for block i, ξ^(n + 1) for the embeddings, 1 for pooler and head; one ξ less below the top."""
    if re.search(r"pooler|classifier|classification|score|summary|logits_proj|final_norm|^head", name):
        return 1.0
    block = re.search(r"layers?\.(\d+)\.|albert_layer_groups\.(\d+)\.", name)
    steps = depth + 1 if block is None else depth - int(block[1] or block[2])
    return llrd.decay ** (steps - (llrd.start == "below"))


def rates(wrapper: RegularizedModel) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in wrapper.model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in wrapper.parameter_groups(lr=1.0) for p in group["params"]}


FAMILIES = ["bert", "roberta", "distilbert", "electra", "deberta-v2-conv", "modernbert", "mpnet", "xlnet"]


@EVERY_START
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_the_learning_rate_of_its_depth(family: str, start: Any) -> None:
    llrd = LLRD(decay=0.5, start=start)
    found = rates(RegularizedModel(tiny_model(family), [llrd]))
    assert found == {name: factor(name, llrd, 3) for name in found}


def test_a_block_that_is_called_many_times_is_the_top_block() -> None:
    llrd = LLRD(decay=0.5)
    found = rates(RegularizedModel(tiny_model("albert"), [llrd]))
    assert found == {name: factor(name, llrd, 1) for name in found}
    assert {found[name] for name in found if "albert_layer_groups" in name} == {0.5}


def test_block_10_is_not_taken_for_block_1() -> None:
    llrd = LLRD(decay=0.5)
    found = rates(RegularizedModel(tiny_model("bert", depth=11), [llrd]))
    assert found["bert.encoder.layer.10.output.dense.weight"] == 0.5
    assert found["bert.encoder.layer.1.output.dense.weight"] == 0.5**10


@EVERY_START
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("sizes", [[6], [4, 2]], ids=str)
def test_weights_after_some_steps_are_those_of_a_hand_written_loop(kind: Any, sizes: list[int], start: Any) -> None:
    llrd = LLRD(decay=0.6, start=start)
    wrapper, by_hand = RegularizedModel(tiny_bert(0.1), [llrd], seed=SEED), tiny_bert(0.1)
    optimizer = kind(wrapper.parameter_groups(RATE, 0.1), lr=RATE)
    wrapper.attach(optimizer)
    groups = [
        {"params": [p], "lr": RATE * factor(name, llrd), "weight_decay": 0.1 if p.ndim > 1 else 0.0}
        for name, p in by_hand.named_parameters()
    ]
    other = kind(groups, lr=RATE)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 / (1 + step)) for one in (optimizer, other)]
    for step in range(STEPS):
        parts = rows_of(batch(step), sizes)
        torch.manual_seed(step)
        for out in wrapper.accumulate(parts):
            out.loss.backward()
        torch.manual_seed(step)
        for part in parts:
            loss = cross_entropy(forward(by_hand, part).logits, part["labels"])
            (loss * len(part["labels"]) / 6).backward()
        for one, schedule in zip((optimizer, other), schedules, strict=True):
            one.step()
            one.zero_grad()
            schedule.step()
    torch.testing.assert_close(values(wrapper.model), values(by_hand), **CLOSE)


def test_the_split_by_weight_decay_stays() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [LLRD()])
    for group in wrapper.parameter_groups(RATE, 0.1):
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_decay_1_is_plain_training_bit_for_bit() -> None:
    plain, nothing = (RegularizedModel(tiny_bert(0.1), methods) for methods in ([], [LLRD(decay=1)]))
    expected = trained(plain, lambda data: plain(**data).loss)
    found = trained(nothing, lambda data: nothing(**data).loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_reports_the_smallest_learning_rate_and_factor_of_every_step() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [LLRD(decay=0.5)])
    optimizer = torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE)
    wrapper.attach(optimizer)
    wrapper(**batch()).loss.backward()
    optimizer.step()
    telemetry = wrapper.drain_telemetry()
    assert telemetry["llrd/lowest_learning_rate_factor"] == pytest.approx(0.5**4)
    assert telemetry["llrd/lowest_learning_rate"] == pytest.approx(RATE * 0.5**4)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert wrapper.drain_telemetry() == {"llrd/lowest_learning_rate": 0.0}


def test_an_optimizer_with_one_learning_rate_is_refused() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [LLRD()])
    with pytest.raises(MethodError, match=r"^the optimizer does not give .* build it from parameter_groups\(\)\.$"):
        wrapper.attach(torch.optim.SGD(wrapper.model.parameters(), lr=RATE))


def test_training_without_its_optimizer_is_refused() -> None:
    with pytest.raises(MethodError, match=r"^llrd acts in optimizer steps"):
        RegularizedModel(tiny_bert(0.1), [LLRD()])(**batch())


def test_it_costs_no_pass() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [LLRD()])
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE))
    passes = wrapper(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)


def test_a_frozen_encoder_is_refused() -> None:
    model = tiny_bert(0.1)
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^llrd cannot act on a frozen encoder"):
        RegularizedModel(model, [LLRD()])
