"""SAM beside a straight line that shifts the weights in place, takes the gradient there and puts them back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import CLOSE, SEED, batch, cross_entropy, forward, gradients, tiny_bert, wrapped
from steadytune import ASA, CAT, L2SP, SAM, SCL, HyPe, Mixout, RegularizedModel
from steadytune.methods import Method, MethodError
from steadytune.methods.sam import ascent

SETTINGS = [SAM(), SAM(rho=0.5, adaptive=True), SAM(rho=0.2)]


def shifted(model: nn.Module, sam: SAM) -> dict[str, Tensor]:
    """Move every weight by e; gives what they were."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    size = {name: p.detach().abs() if sam.adaptive else torch.ones_like(p) for name, p in model.named_parameters()}
    length = sum(float(((size[name] * p.grad) ** 2).sum()) for name, p in model.named_parameters()) ** 0.5
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += sam.rho * size[name] ** 2 * p.grad / length
    return before


def sharpness_aware_step(model: nn.Module, sam: SAM, loss: Any) -> Tensor:
    """Leaves the gradient at the shifted weights on the weights; gives the loss there."""
    state = torch.get_rng_state()
    loss().backward()
    before = shifted(model, sam)
    model.zero_grad()
    torch.set_rng_state(state)
    found = loss()
    found.backward()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
    return found.detach()


@pytest.mark.parametrize("sam", SETTINGS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_loss_and_every_gradient_are_those_at_the_shifted_weights(sam: SAM, dropout: float) -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(dropout), [sam], seed=SEED), tiny_bert(dropout)
    for step in range(2):
        data = batch(step)
        torch.manual_seed(step)
        found = wrapper(**data)
        found.loss.backward()
        torch.manual_seed(step)
        expected = sharpness_aware_step(
            by_hand, sam, lambda data=data: cross_entropy(forward(by_hand, data).logits, data["labels"])
        )
        torch.testing.assert_close(found.loss.detach(), expected, **CLOSE)
        torch.testing.assert_close(
            gradients(wrapper.model.named_parameters()), gradients(by_hand.named_parameters()), **CLOSE
        )
        wrapper.zero_grad()
        by_hand.zero_grad()


STACKS: list[list[Method]] = [
    [SCL(weight=0.3)],
    [HyPe(noise_std=0.1), SCL(weight=0.3)],
    [CAT(weight=0.2)],
    [ASA(target_mask_fraction=0.2)],
    [Mixout(probability=0.3)],
    [L2SP(form="penalty", weight=1.0)],
]


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: "+".join(method.key for method in stack))
def test_the_loss_of_a_whole_stack_is_evaluated_at_the_shifted_weights(stack: list[Method]) -> None:
    """The same stack without SAM, on weights that were shifted by hand, is the straight line."""
    sam, data = SAM(rho=0.3), batch(0)
    wrapper, by_hand = wrapped(0.1, [*stack, sam]), wrapped(0.1, stack)
    torch.manual_seed(3)
    found = wrapper(**data)
    found.loss.backward()

    def loss() -> Tensor:
        by_hand.micro_steps = 0  # both evaluations meet the same draws
        result = by_hand(**data).loss
        assert isinstance(result, Tensor)
        return result

    torch.manual_seed(3)
    own = {name: buffer.clone() for name, buffer in by_hand.method_modules.named_buffers()}
    state = torch.get_rng_state()
    loss().backward()
    before = shifted(by_hand.model, sam)
    by_hand.zero_grad()
    for name, buffer in by_hand.method_modules.named_buffers():
        buffer.copy_(own[name])  # the price of ASA is steered once
    torch.set_rng_state(state)
    expected = loss()
    expected.backward()
    torch.testing.assert_close(found.loss.detach(), expected.detach(), **CLOSE)
    torch.testing.assert_close(gradients(wrapper.named_parameters()), gradients(by_hand.named_parameters()), **CLOSE)
    torch.testing.assert_close(
        dict(wrapper.method_modules.named_buffers()), dict(by_hand.method_modules.named_buffers()), **CLOSE
    )
    assert all(torch.equal(p, before[name]) for name, p in wrapper.model.named_parameters())


def test_the_step_is_as_long_as_the_radius_and_along_the_gradient() -> None:
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    found = {"a": torch.tensor([0.0, 3.0]), "b": torch.tensor([[4.0]])}
    offsets = ascent(weights, found, 0.1)
    torch.testing.assert_close(offsets, {"a": torch.tensor([0.0, 0.06]), "b": torch.tensor([[0.08]])})
    adaptive = ascent(weights, found, 0.1, adaptive=True)  # |w| g = (0, 6), 2; its length is √40
    root = 40**0.5
    torch.testing.assert_close(adaptive, {"a": torch.tensor([0.0, 1.2 / root]), "b": torch.tensor([[0.1 / root]])})


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("gradient", [[0.0, 0.0], [torch.inf, 1.0], [torch.nan, 1.0]])
def test_without_a_usable_gradient_nothing_moves(gradient: list[float], adaptive: bool) -> None:
    offsets = ascent({"a": torch.ones(2)}, {"a": torch.tensor(gradient)}, 0.1, adaptive=adaptive)
    assert torch.equal(offsets["a"], torch.zeros(2))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_gradient_whose_square_is_no_float32_has_a_direction_all_the_same(size: float) -> None:
    offsets = ascent({"a": torch.ones(2)}, {"a": torch.tensor([3 * size, 4 * size])}, 0.1)
    torch.testing.assert_close(offsets["a"], torch.tensor([0.06, 0.08]))


def test_steps_without_a_usable_gradient_are_said() -> None:
    (text,) = SAM().judge({"still_fraction": 0.25})
    assert text.startswith("sam: in 25.0% of the steps the gradient of the loss was 0 or not finite")
    assert SAM().judge({"still_fraction": 0.0}) == []


def test_both_evaluations_compute_in_the_dtype_of_autocast() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1, torch.float32), [SAM()], seed=SEED)
    seen: list[torch.dtype] = []
    dense = wrapper.model.bert.encoder.layer[0].intermediate.dense
    dense.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wrapper(**batch(0))
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_a_step_costs_twice_the_passes_and_a_random_direction_once() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [SAM(), SCL(weight=0.3)], seed=SEED)
    assert wrapper(**batch(0)).passes.units == 6
    chance = RegularizedModel(tiny_bert(0.1), [SAM(direction="random")], seed=SEED)
    assert chance(**batch(0)).passes.units == 3


def test_a_random_step_is_as_long() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [SAM(direction="random", rho=0.2)], seed=SEED)
    found = wrapper(**batch(0))
    assert float(found.telemetry["sam/length"]) == pytest.approx(0.2)


def test_a_radius_of_zero_is_plain_fine_tuning_bit_for_bit() -> None:
    plain, null = RegularizedModel(tiny_bert(0.1)), RegularizedModel(tiny_bert(0.1), [SAM(rho=0)])
    for wrapper in (plain, null):
        torch.manual_seed(1)
        wrapper(**batch(0)).loss.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), null.parameters(), strict=True))


def test_every_accumulated_batch_is_shifted_by_itself() -> None:
    wrapper, by_hand, sam = RegularizedModel(tiny_bert(0.0), [SAM()], seed=SEED), tiny_bert(0.0), SAM()
    batches = [batch(0), batch(1)]
    for output in wrapper.accumulate(batches):
        output.loss.backward()
    total = sum(len(data["labels"]) for data in batches)
    expected: dict[str, Tensor] = {}
    for data in batches:
        by_hand.zero_grad()
        sharpness_aware_step(by_hand, sam, lambda d=data: cross_entropy(forward(by_hand, d).logits, d["labels"]))
        for name, gradient in gradients(by_hand.named_parameters()).items():
            expected[name] = expected.get(name, 0) + len(data["labels"]) / total * gradient
    torch.testing.assert_close(gradients(wrapper.model.named_parameters()), expected, **CLOSE)


def test_a_contrast_over_accumulated_batches_is_refused() -> None:
    with pytest.raises(MethodError, match="sam takes every batch at weights of its own"):
        RegularizedModel(tiny_bert(0.1), [SCL(weight=0.3, gather_across_accumulation=True), SAM()])


def test_sixteen_bit_weights_are_refused() -> None:
    model = copy.deepcopy(tiny_bert(0.1)).to(torch.bfloat16)
    with pytest.raises(MethodError, match="16-bit weights"):
        RegularizedModel(model, [SAM()])
