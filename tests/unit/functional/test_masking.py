"""The mask of an adversary, against numbers that can be derived by hand: section 12 of the specification."""

import math

import pytest
import torch
from torch import Tensor

from steadytune.functional import reversed_mask
from tolerances import HALF_A_DIGIT, PRINTED, SAME

TAU = 0.5


def all_free(scores: Tensor) -> Tensor:
    return torch.ones(scores.shape, dtype=torch.bool)


def one_unit(score: float, **options: float) -> tuple[Tensor, Tensor, Tensor]:
    """Its score, bias and whether it is kept."""
    scores = torch.tensor([[[score]]], dtype=torch.float64, requires_grad=True)
    bias, kept = reversed_mask(scores, all_free(scores), gain=options.get("gain", 1e4))
    return scores, bias, kept


# -- forwards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "choice"), [(1e-30, 1), (3.0, 1), (0.0, 0), (-1e-30, 0), (-3.0, 0)])
def test_a_unit_is_kept_if_its_score_is_above_0(score: float, choice: int) -> None:
    _, bias, kept = one_unit(score)
    assert (kept.item(), bias.item()) == (choice, 0 if choice else -10_000)


@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e6])
def test_the_bias_does_not_depend_on_the_gain(gain: float) -> None:
    assert one_unit(-1.0, gain=gain)[1].item() == -10_000


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_masked_unit_gets_no_attention_in_any_precision(dtype: torch.dtype) -> None:
    bias = reversed_mask(torch.tensor([[[-1.0, 1.0], [1.0, 1.0]]]), all_free(torch.ones(1, 2, 2)), gain=1e4)[0]
    scores = torch.tensor([[30.0, 0.0], [0.0, 0.0]], dtype=dtype) + bias[0, 0].to(dtype)
    assert scores.softmax(dim=-1).tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_a_unit_that_is_not_free_has_no_bias_and_does_not_count_as_kept() -> None:
    scores = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]])
    free = torch.tensor([[[True, True], [False, False]]])
    bias, kept = reversed_mask(scores, free, gain=1e4)
    assert bias[0, 0].tolist() == [[-10_000, 0], [0, 0]]
    assert kept[0].tolist() == [[0, 1], [0, 0]]


def test_the_scores_are_left_as_they_were() -> None:
    scores = torch.tensor([[[-1.0, 1.0], [0.0, 2.0]]])
    reversed_mask(scores, all_free(scores), gain=1e4)
    assert scores.tolist() == [[[-1.0, 1.0], [0.0, 2.0]]]


# -- backwards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "expected"), [(0, -0.0625), (1, -0.0491530), (-2, -0.0262484), (4, -0.0044157)])
def test_the_price_alone_raises_the_score(score: float, expected: float) -> None:
    scores, _, kept = one_unit(score)
    (TAU**2 * kept).sum().backward()
    assert scores.grad is not None
    assert scores.grad.item() == pytest.approx(expected, abs=PRINTED[torch.float64])  # −τ² σ(s)(1 − σ(s))


@pytest.mark.parametrize("gain", [1.0, 1e4])
def test_what_lowers_the_loss_when_a_unit_is_kept_lowers_its_score_by_the_gain(gain: float) -> None:
    scores, bias, _ = one_unit(1.0, gain=gain)
    (-0.3 * bias).sum().backward()  # the loss falls with the bias, so the adversary wants it low
    slope = math.exp(-1) / (1 + math.exp(-1)) ** 2
    assert scores.grad is not None
    assert scores.grad.item() == pytest.approx(0.3 * gain * slope, rel=SAME[torch.float64])


@pytest.mark.parametrize("score", [-80.0, 80.0, -800.0, 800.0])
def test_extreme_scores_have_a_finite_gradient(score: float) -> None:
    scores, bias, kept = one_unit(score)
    (bias + kept).sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all() and scores.grad.item() <= 0


def test_a_unit_that_is_not_free_gets_no_gradient() -> None:
    scores = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    free = torch.arange(18).view(2, 3, 3) % 2 == 0
    bias, kept = reversed_mask(scores, free, gain=10.0)
    (bias.sum() + kept.sum()).backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad != 0, free)


def test_the_gradient_of_the_bias_is_summed_over_heads() -> None:
    found = []
    for heads in (1, 3):
        scores, bias, _ = one_unit(0.5)
        (bias.expand(-1, heads, -1, -1)).sum().backward()
        found.append(scores.grad)
    assert found[0] is not None and found[1] is not None
    torch.testing.assert_close(found[1], 3 * found[0])


@pytest.mark.parametrize("scale", [1024.0, 0.125])
def test_the_gradient_scales_with_the_loss_price_included(scale: float) -> None:
    found = []
    for factor in (1.0, scale):
        scores, bias, kept = one_unit(0.5)
        (factor * (0.3 * bias.sum() + TAU**2 * kept.sum())).backward()
        found.append(scores.grad)
    assert found[0] is not None and torch.equal(scale * found[0], found[1])


# -- the tiny adversary of section 12, 10 -----------------------------------------------------------------------------

STATES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
OF_BIAS = torch.tensor([[0.1, -0.2, 0.1], [0.0, 0.3, -0.3], [-0.05, 0.05, 0.0]], dtype=torch.float64)


def tiny_adversary(gain: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, price, and the gradients of the scores and of W_q."""
    weight = torch.eye(2, dtype=torch.float64, requires_grad=True)
    scores = ((STATES @ weight.T) @ STATES.T / 2**0.5)[None]
    scores.retain_grad()
    bias, kept = reversed_mask(scores, all_free(scores), gain=gain)
    price = TAU**2 * kept.sum()
    ((OF_BIAS * bias[0, 0]).sum() + price).backward()
    assert scores.grad is not None and weight.grad is not None
    return scores[0].detach(), price.detach(), scores.grad[0], weight.grad


def test_scores_of_the_tiny_adversary_keep_five_units_for_1_25() -> None:
    scores, price, _, _ = tiny_adversary(1e4)
    half = 2**-0.5
    expected = torch.tensor([[half, 0, -half], [0, half, half], [-half, half, 2 * half]], dtype=torch.float64)
    torch.testing.assert_close(scores, expected)
    assert price.item() == 1.25


def test_score_gradient_of_the_tiny_adversary_at_the_papers_gain() -> None:
    expected = [[-221.24, 499.94, -221.24], [-0.0625, -663.60, 663.49], [110.54, -110.65, -0.0393]]
    found = tiny_adversary(1e4)[2]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=HALF_A_DIGIT * 1e-2, rtol=0)


def test_score_gradient_of_the_tiny_adversary_at_gain_one() -> None:
    expected = [[-0.0774, -0.0125, -0.0774], [-0.0625, -0.1216, 0.0111], [-0.0442, -0.0664, -0.0393]]
    found = tiny_adversary(1.0)[2]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=HALF_A_DIGIT * 1e-4, rtol=0)


def test_weight_gradient_of_the_tiny_adversary() -> None:
    expected = [[-78.188, -391.013], [275.338, -78.344]]
    found = tiny_adversary(1e4)[3]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=HALF_A_DIGIT * 1e-3, rtol=0)
