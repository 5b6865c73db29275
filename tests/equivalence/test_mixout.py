"""Mixout beside a straight line, in which every linear map of the layers is mixed as the paper writes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dummies import Watch
from equivalence.straight_line import CLOSE, RANK, SEED, batch, cross_entropy, forward, gradients, tiny_bert, trained
from steadytune import RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import keyed_generator
from steadytune.methods import MethodError
from steadytune.methods.mixout import Mixout, mix_weight
from tiny import rows_of

SETTINGS = [Mixout(), Mixout(probability=0.3, unit="element"), Mixout(probability=0.9), Mixout(unit="element")]


def linear_maps(model: Any) -> dict[str, nn.Module]:
    named = model.bert.encoder.named_modules(prefix="bert.encoder")
    return {name: module for name, module in named if isinstance(module, nn.Linear)}


@contextmanager
def mixed(model: Any, start: dict[str, Tensor], mixout: Mixout, step: int) -> Iterator[None]:
    """The maps read [k W + (1 − k) U − p U] / (1 − p) while the block runs."""
    p, own = mixout.probability, {}
    for name, module in linear_maps(model).items():
        weight = own[name] = module._parameters.pop("weight")
        target = start[f"{name}.weight"]
        shape = target.shape if mixout.unit == "element" else target.shape[1:]
        generator = keyed_generator("cpu", SEED, "mixout", step, RANK, "clean", "mask", f"{name}.weight")
        k = (torch.rand(shape, generator=generator, dtype=torch.float64) >= p).double()
        module.weight = (k * weight + (1 - k) * target - p * target) / (1 - p)
    yield
    for name, module in linear_maps(model).items():
        del module.weight
        module.weight = own[name]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def wrapped(mixout: Mixout, dropout: float = 0.1) -> RegularizedModel:
    return RegularizedModel(tiny_bert(dropout), [mixout], seed=SEED)


def moved(model: nn.Module) -> None:
    """As if it had been trained: away from the pre-trained weights."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))


@pytest.mark.parametrize("mixout", SETTINGS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_loss_and_every_gradient_are_those_of_the_mixed_weights(mixout: Mixout, dropout: float) -> None:
    wrapper, by_hand = wrapped(mixout, dropout), tiny_bert(dropout)
    start = values(by_hand)
    moved(wrapper.model)
    moved(by_hand)
    for step in range(2):
        torch.manual_seed(step)
        found = wrapper(**batch(step))
        found.loss.backward()
        torch.manual_seed(step)
        with mixed(by_hand, start, mixout, step):
            expected = cross_entropy(forward(by_hand, batch(step)).logits, batch(step)["labels"])
        expected.backward()
        torch.testing.assert_close(found.loss.detach(), expected.detach(), **CLOSE)
    torch.testing.assert_close(
        gradients(wrapper.model.named_parameters()), gradients(by_hand.named_parameters()), **CLOSE
    )


@pytest.mark.parametrize("sizes", [[6], [4, 2]], ids=str)
@pytest.mark.parametrize("mixout", SETTINGS[:2], ids=str)
def test_weights_after_some_steps_are_those_of_a_hand_written_loop(mixout: Mixout, sizes: list[int]) -> None:
    wrapper, by_hand = wrapped(mixout), tiny_bert(0.1)
    start, number = values(by_hand), 0
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-2))
    other = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0)
    for step in range(4):
        parts = rows_of(batch(step), sizes)
        torch.manual_seed(step)
        for out in wrapper.accumulate(parts):
            out.loss.backward()
        torch.manual_seed(step)
        for part in parts:
            with mixed(by_hand, start, mixout, number):
                loss = cross_entropy(forward(by_hand, part).logits, part["labels"])
            (loss * len(part["labels"]) / 6).backward()
            number += 1
        for one in (optimizer, other):
            one.step()
            one.zero_grad()
    torch.testing.assert_close(values(wrapper.model), values(by_hand), **CLOSE)


def test_a_masked_input_sees_the_pre_trained_weights_to_the_last_bit() -> None:
    weight, target = torch.randn(2, 5, 7).double()
    kept = torch.tensor([[True, False, True, False, False, True, True]])
    found = mix_weight(weight, target, kept, 0.7)
    assert torch.equal(found[:, ~kept[0]], target[:, ~kept[0]])
    torch.testing.assert_close(found[:, kept[0]], target[:, kept[0]] + (weight - target)[:, kept[0]] / 0.3, **CLOSE)


def test_with_zeros_for_pre_trained_weights_it_is_dropout_of_the_inputs() -> None:
    weight, states = torch.randn(5, 7).double(), torch.randn(3, 7).double()
    kept = torch.rand(1, 7) >= 0.4
    found = states @ mix_weight(weight, torch.zeros_like(weight), kept, 0.4).T
    torch.testing.assert_close(found, (states * kept / 0.6) @ weight.T, **CLOSE)


def test_probability_0_is_plain_training_bit_for_bit() -> None:
    plain = RegularizedModel(tiny_bert(0.1), [], seed=SEED)
    nothing = wrapped(Mixout(probability=0))
    expected = trained(plain, lambda data: plain(**data).loss)
    found = trained(nothing, lambda data: nothing(**data).loss)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_costs_no_pass() -> None:
    passes = wrapped(Mixout())(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)


def test_only_linear_maps_inside_the_layers_are_mixed() -> None:
    wrapper = wrapped(Mixout())
    names = {name.replace("/", ".") for name, _ in wrapper.method_modules["mixout"].named_buffers()}
    assert names == {f"{name}.weight" for name in linear_maps(wrapper.model)}
    assert len(names) == 6 * 3
    assert not list(wrapper.method_modules.parameters())


def test_a_replayed_pass_mixes_as_the_first_one_another_pass_anew_and_a_teacher_not_at_all() -> None:
    def look(step: Any) -> dict[str, Tensor]:
        runs = {"clean": step.clean}
        for kind in ("label", "auxiliary", "probe", "teacher"):
            runs[kind] = step.run(f"as {kind}", dropout="as clean", kind=kind)
        runs["fresh"] = step.run("fresh")
        return {name: run.logits.detach() for name, run in runs.items()}

    watch = Watch(look=look)
    wrapper = RegularizedModel(tiny_bert(0.0), [Mixout(), watch], seed=SEED)
    moved(wrapper.model)
    wrapper(**batch())
    seen = watch.seen
    assert all(torch.equal(seen[kind], seen["clean"]) for kind in ("label", "auxiliary", "probe"))
    assert not torch.equal(seen["fresh"], seen["clean"])
    torch.testing.assert_close(seen["teacher"], forward(wrapper.model, batch()).logits.detach(), **CLOSE)


def test_it_reports_how_much_is_mixed_and_how_far_the_weights_have_moved() -> None:
    wrapper = wrapped(Mixout(unit="element"))
    start = values(wrapper.model)
    moved(wrapper.model)
    telemetry = wrapper(**batch()).telemetry
    names = [f"{name}.weight" for name in linear_maps(wrapper.model)]
    now = values(wrapper.model)
    far = [float((now[name] - start[name]).norm() / start[name].norm()) for name in names]
    assert float(telemetry["mixout/relative_distance"]) == pytest.approx(sum(far) / len(far))
    assert 0.6 < float(telemetry["mixout/pretrained_share"]) < 0.8


def test_a_resumed_run_mixes_with_the_weights_that_the_first_one_began_with(tmp_path: Path) -> None:
    wrapper = wrapped(Mixout())
    start = values(wrapper.model)
    moved(wrapper.model)
    wrapper.save_state(tmp_path)
    again = RegularizedModel(tiny_bert(0.1), [Mixout()], seed=SEED)
    moved(again.model)
    again.load_state(tmp_path)
    for name, target in again.method_modules["mixout"].named_buffers():
        assert torch.equal(target, start[name.replace("/", ".")])


def test_pre_trained_weights_are_float32_beside_16_bit_ones() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1, torch.bfloat16), [Mixout()], seed=SEED)
    assert {target.dtype for target in wrapper.method_modules["mixout"].buffers()} == {torch.float32}
    out = wrapper(**batch())
    out.loss.backward()
    assert torch.isfinite(out.loss)


def test_mixing_everything_is_refused() -> None:
    with pytest.raises(MethodError, match=r"^mixout\.probability must be below 1"):
        wrapped(Mixout(probability=1))


def test_gradient_checkpointing_is_refused() -> None:
    model = tiny_bert(0.1)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(SiteUnavailable, match=r"^mixout needs the site 'weights'"):
        RegularizedModel(model, [Mixout()])


def test_layers_without_a_trained_linear_map_are_refused() -> None:
    model = tiny_bert(0.1)
    model.bert.encoder.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^mixout cannot act here"):
        RegularizedModel(model, [Mixout()])


def test_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_bert(0.1), peft.LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(MethodError, match=r"^mixout cannot act on a model with adapters"):
        RegularizedModel(model, [Mixout()])
