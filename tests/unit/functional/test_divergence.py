"""Distances of two predictions, against numbers that can be derived by hand: asa.md, section 12, 1 and 2."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steadytune.functional import keyed_generator, symmetric_kl
from tolerances import PRINTED, ROUNDED, SAME

EXACT = SAME[torch.float64]
CLOSE: dict[str, float] = {"rtol": EXACT, "atol": EXACT}
Rows = list[list[float]]


def divergence(one: Rows, other: Rows, dtype: torch.dtype = torch.float64) -> float:
    return float(symmetric_kl(torch.tensor(one, dtype=dtype), torch.tensor(other, dtype=dtype)))


def near(expected: float, dtype: torch.dtype = torch.float64) -> object:
    return pytest.approx(expected, rel=0, abs=PRINTED[dtype])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def in_loops(one: Rows, other: Rows) -> float:
    """½ KL(p ‖ q) + ½ KL(q ‖ p), term by term, mean over the rows."""
    total = 0.0
    for a, b in zip(one, other, strict=True):
        p, q = ([math.exp(x) / math.fsum(map(math.exp, row)) for x in row] for row in (a, b))
        forward = math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        backward = math.fsum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
        total += (forward + backward) / 2
    return total / len(one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("one", "other"), [([[2, 0]], [[0, 0]]), ([[0, 0]], [[1, -1]]), ([[2, 0], [0, 0]], [[0, 0], [1, -1]])]
)
def test_two_classes_have_the_closed_form(one: Rows, other: Rows, dtype: torch.dtype) -> None:
    assert 0.5 * (sigmoid(2) - 0.5) * 2 == near(0.380797)  # the scores are 2 apart in one, equal in the other
    assert divergence(one, other, dtype) == near(0.380797, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_three_classes_in_reverse_have_the_closed_form(dtype: torch.dtype) -> None:
    e = math.e
    assert 2 * (e**3 - e) / (e + e**2 + e**3) == near(1.150421)
    assert divergence([[1, 2, 3]], [[3, 2, 1]], dtype) == near(1.150421, dtype)


def random_scores(seed: int, rows: int = 4, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = keyed_generator("cpu", "scores", seed)
    one, other = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return one, other


@given(st.integers(0, 10_000))
def test_value_is_that_of_plain_loops(seed: int) -> None:
    one, other = random_scores(seed)
    expected = in_loops(one.tolist(), other.tolist())
    assert float(symmetric_kl(one, other)) == pytest.approx(expected, rel=EXACT)


@given(st.integers(0, 10_000))
def test_the_order_of_the_predictions_does_not_count(seed: int) -> None:
    one, other = random_scores(seed)
    torch.testing.assert_close(symmetric_kl(other, one), symmetric_kl(one, other), **CLOSE)


@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_a_constant_added_to_all_scores_of_a_prediction_changes_nothing(seed: int, constant: float) -> None:
    one, other = random_scores(seed)
    torch.testing.assert_close(symmetric_kl(one + constant, other), symmetric_kl(one, other), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_predictions_are_exactly_zero_apart(dtype: torch.dtype) -> None:
    one, _ = random_scores(0)
    assert float(symmetric_kl(one.to(dtype), one.to(dtype))) == 0.0


def test_equal_predictions_have_a_gradient_of_exactly_zero() -> None:
    one, other = (random_scores(0)[0].requires_grad_() for _ in range(2))
    symmetric_kl(one, other).backward()
    assert one.grad is not None and torch.equal(one.grad, torch.zeros_like(one))
    assert other.grad is not None and torch.equal(other.grad, torch.zeros_like(other))


@given(st.integers(0, 10_000))
def test_value_is_never_negative(seed: int) -> None:
    one, other = random_scores(seed)
    assert float(symmetric_kl(one, one + 1e-9 * other)) >= 0


def test_gradients_agree_with_finite_differences() -> None:
    one, other = (scores.requires_grad_() for scores in random_scores(0))
    assert torch.autograd.gradcheck(symmetric_kl, (one, other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_compared_in_float32(dtype: torch.dtype) -> None:
    one, other = [[1.0, 2.0, 3.0], [0.0, -4.0, 2.0]], [[3.0, 2.0, 1.0], [1.0, -2.0, 2.0]]  # exact in half precision
    value = symmetric_kl(torch.tensor(one, dtype=dtype), torch.tensor(other, dtype=dtype))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(in_loops(one, other), rel=ROUNDED[dtype])


def test_sure_predictions_have_a_finite_distance_and_gradient() -> None:
    one = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = symmetric_kl(one, torch.tensor([[-1e4, 0.0, 1e4]]))
    value.backward()
    assert float(value.detach()) == pytest.approx(2e4, rel=SAME[torch.float32])  # ½ · 2 · (log-odds of 2e4)
    assert one.grad is not None and torch.isfinite(one.grad).all()


def test_no_prediction_at_all_gives_zero() -> None:
    assert float(symmetric_kl(torch.zeros(0, 3), torch.zeros(0, 3))) == 0.0
