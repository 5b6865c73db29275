"""What holds for the contrasts of every batch: scl.md, T12; cat.md, K12; bounds, gradients, awkward batches."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from steadytune.functional import keyed_generator, nt_xent_loss, supcon_loss
from tolerances import SAME

CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
temperatures = st.sampled_from([0.1, 0.3, 1.0, 5.0])
reductions = st.sampled_from(["mean", "sum", "mean_valid"])
seeds = st.integers(0, 2**32 - 1)


@st.composite
def batches(draw: Any, low: int = 1) -> tuple[Tensor, Tensor]:
    """Vectors away from zero and labels, some of them ignored."""
    rows, width = draw(st.integers(low, 9)), draw(st.integers(1, 5))
    z = torch.randn(rows, width, generator=keyed_generator("cpu", draw(seeds)), dtype=torch.float64)
    labels = draw(st.lists(st.sampled_from([0, 1, 2, 7, -100]), min_size=rows, max_size=rows))
    return z + 0.1 * z.sign(), torch.tensor(labels)


def value_and_gradient(z: Tensor, labels: Tensor, tau: float, reduction: str = "sum") -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    value = supcon_loss(z, labels, temperature=tau, reduction=reduction)
    value.backward()
    assert z.grad is not None
    return value.detach(), z.grad


@given(batches(), temperatures, reductions, st.lists(st.floats(1e-3, 1e3), min_size=9, max_size=9))
def test_scaling_each_vector_changes_nothing(
    batch: tuple[Tensor, Tensor], tau: float, reduction: str, scales: list[float]
) -> None:
    z, labels = batch
    scaled = z * torch.tensor(scales[: len(z)], dtype=z.dtype)[:, None]
    expected = supcon_loss(z, labels, temperature=tau, reduction=reduction)
    torch.testing.assert_close(supcon_loss(scaled, labels, temperature=tau, reduction=reduction), expected, **CLOSE)


@given(batches(), temperatures, reductions, seeds)
def test_a_common_rotation_or_reflection_changes_nothing(
    batch: tuple[Tensor, Tensor], tau: float, reduction: str, seed: int
) -> None:
    z, labels = batch
    width = z.shape[1]
    square = torch.randn(width, width, generator=keyed_generator("cpu", seed), dtype=z.dtype)
    orthogonal = torch.linalg.qr(square).Q
    expected = supcon_loss(z, labels, temperature=tau, reduction=reduction)
    turned = supcon_loss(z @ orthogonal, labels, temperature=tau, reduction=reduction)
    torch.testing.assert_close(turned, expected, **CLOSE)


@given(batches(), temperatures, reductions, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_count(
    batch: tuple[Tensor, Tensor], tau: float, reduction: str, random: Any
) -> None:
    z, labels = batch
    order = list(range(len(z)))
    random.shuffle(order)
    value, gradient = value_and_gradient(z, labels, tau, reduction)
    moved_value, moved_gradient = value_and_gradient(z[order], labels[order], tau, reduction)
    torch.testing.assert_close(moved_value, value, **CLOSE)
    torch.testing.assert_close(moved_gradient, gradient[order], **CLOSE)


@given(batches(), temperatures, reductions, st.permutations([0, 1, 2, 7]))
def test_the_names_of_the_classes_do_not_count(
    batch: tuple[Tensor, Tensor], tau: float, reduction: str, names: list[int]
) -> None:
    z, labels = batch
    renamed = labels.clone()
    for old, new in zip([0, 1, 2, 7], names, strict=True):
        renamed[labels == old] = new + 10
    expected = supcon_loss(z, labels, temperature=tau, reduction=reduction)
    assert torch.equal(supcon_loss(z, renamed, temperature=tau, reduction=reduction), expected)


@given(batches(), temperatures)
def test_gradient_of_a_vector_is_orthogonal_to_it(batch: tuple[Tensor, Tensor], tau: float) -> None:
    z, labels = batch
    _, gradient = value_and_gradient(z, labels, tau)
    torch.testing.assert_close((z * gradient).sum(dim=-1), torch.zeros(len(z)).double(), **CLOSE)


@given(batches(), temperatures, st.floats(1e-2, 1e2))
def test_scaling_a_vector_divides_its_gradient(batch: tuple[Tensor, Tensor], tau: float, scale: float) -> None:
    z, labels = batch
    _, gradient = value_and_gradient(z, labels, tau)
    scaled = z.clone()
    scaled[0] *= scale
    _, found = value_and_gradient(scaled, labels, tau)
    expected = gradient.clone()
    expected[0] /= scale
    torch.testing.assert_close(found, expected, **CLOSE)


@settings(max_examples=25)
@given(batches(), st.sampled_from([0.3, 1.0, 5.0]), reductions)
def test_gradient_agrees_with_finite_differences(batch: tuple[Tensor, Tensor], tau: float, reduction: str) -> None:
    z, labels = batch
    assume(z.shape[1] > 1)  # a normalized number is a sign: its derivative is 0 and its difference quotient rounding
    assert torch.autograd.gradcheck(
        lambda rows: supcon_loss(rows, labels, temperature=tau, reduction=reduction), (z.requires_grad_(),)
    )


def shared(labels: Tensor) -> list[int]:
    """Number of positives of each labelled anchor that has one."""
    counts = Counter(label for label in labels.tolist() if label != -100)
    return [count - 1 for count in counts.values() if count > 1 for _ in range(count)]


@given(batches(), temperatures)
def test_the_sum_stays_above_the_logarithms_of_the_numbers_of_positives(
    batch: tuple[Tensor, Tensor], tau: float
) -> None:
    z, labels = batch
    floor = math.fsum(math.log(count) for count in shared(labels))
    assert float(supcon_loss(z, labels, temperature=tau, reduction="sum")) >= floor - SAME[torch.float64]


@given(batches(), temperatures)
def test_an_anchor_pays_at_most_the_logarithm_of_the_others_plus_the_range_of_cosines(
    batch: tuple[Tensor, Tensor], tau: float
) -> None:
    z, labels = batch
    anchors = len(shared(labels))
    others = int((labels != -100).sum()) - 1
    ceiling = anchors * (math.log(max(others, 1)) + 2 / tau)  # log of `others` terms, cosines between -1 and 1
    assert float(supcon_loss(z, labels, temperature=tau, reduction="sum")) <= ceiling + SAME[torch.float64]


@given(batches(), temperatures)
def test_the_three_reductions_are_shares_of_one_sum(batch: tuple[Tensor, Tensor], tau: float) -> None:
    z, labels = batch
    total, mean, valid = (float(value_and_gradient(z, labels, tau, kind)[0]) for kind in ("sum", "mean", "mean_valid"))
    assert mean * max(int((labels != -100).sum()), 1) == pytest.approx(total, rel=SAME[torch.float64])
    assert valid * max(len(shared(labels)), 1) == pytest.approx(total, rel=SAME[torch.float64])


AWKWARD = {
    "one example": (torch.tensor([[1.0, 2.0]]), [0]),
    "one class": (torch.eye(4), [3, 3, 3, 3]),
    "every class once": (torch.eye(4), [0, 1, 2, 3]),
    "ignored labels only": (torch.eye(3), [-100, -100, -100]),
    "one labelled among ignored": (torch.eye(3), [-100, 1, -100]),
    "two of a class among ignored": (torch.eye(3), [1, 1, -100]),
    "zero vectors": (torch.zeros(4, 3), [0, 0, 1, 1]),
    "one zero vector": (torch.cat([torch.eye(3), torch.zeros(1, 3)]), [0, 0, 1, 1]),
    "equal vectors": (torch.ones(4, 3), [0, 0, 1, 1]),
    "opposite vectors": (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), [0, 0]),
    "huge and tiny vectors": (torch.tensor([[1e18, 0.0], [1e-18, 1e-18], [1.0, 1.0]]), [0, 0, 1]),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_valid"])
@pytest.mark.parametrize("tau", [1e-4, 0.07, 0.3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_batches_have_a_finite_value_and_gradient(
    name: str, dtype: torch.dtype, tau: float, reduction: str
) -> None:
    rows, labels = AWKWARD[name]
    value, gradient = value_and_gradient(rows.to(dtype), torch.tensor(labels), tau, reduction)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "name", ["one example", "every class once", "ignored labels only", "one labelled among ignored"]
)
def test_a_batch_without_pairs_gives_zero_that_is_connected_to_the_vectors(name: str) -> None:
    rows, labels = AWKWARD[name]
    value, gradient = value_and_gradient(rows, torch.tensor(labels), 0.3)
    assert float(value) == 0.0
    assert torch.equal(gradient, torch.zeros_like(rows))


# -- two views --------------------------------------------------------------------------------------------------------


@st.composite
def views(draw: Any, low: int = 1) -> tuple[Tensor, Tensor]:
    """Two views of some examples, away from zero."""
    shape = draw(st.integers(low, 7)), draw(st.integers(1, 5))
    drawn = torch.randn(2, *shape, generator=keyed_generator("cpu", draw(seeds)), dtype=torch.float64)
    one, other = drawn + 0.1 * drawn.sign()
    return one, other


def views_value_and_gradients(one: Tensor, other: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    one, other = (view.detach().clone().requires_grad_() for view in (one, other))
    value = nt_xent_loss(one, other, temperature=tau)
    value.backward()
    assert one.grad is not None and other.grad is not None
    return value.detach(), one.grad, other.grad


@given(views(), temperatures)
def test_swapping_the_views_swaps_their_gradients(pair: tuple[Tensor, Tensor], tau: float) -> None:
    value, *gradients = views_value_and_gradients(*pair, tau)
    swapped, *moved = views_value_and_gradients(*pair[::-1], tau)
    torch.testing.assert_close(swapped, value, **CLOSE)
    torch.testing.assert_close(moved[::-1], gradients, **CLOSE)


@given(views(), temperatures, st.randoms(use_true_random=False))
def test_the_order_of_the_examples_does_not_count(pair: tuple[Tensor, Tensor], tau: float, random: Any) -> None:
    order = list(range(len(pair[0])))
    random.shuffle(order)
    value, *gradients = views_value_and_gradients(*pair, tau)
    moved_value, *moved = views_value_and_gradients(pair[0][order], pair[1][order], tau)
    torch.testing.assert_close(moved_value, value, **CLOSE)
    torch.testing.assert_close(moved, [gradient[order] for gradient in gradients], **CLOSE)


@given(views(low=2), temperatures)
def test_exact_copies_have_a_smaller_contrast_than_copies_in_another_order(
    pair: tuple[Tensor, Tensor], tau: float
) -> None:
    view, _ = pair
    assume(view.shape[1] > 1)  # normalized numbers are signs, and equal ones are each other's copies
    in_order = nt_xent_loss(view, view, temperature=tau)
    assert float(nt_xent_loss(view, view.roll(1, dims=0), temperature=tau)) > float(in_order)


@given(views(), temperatures, st.lists(st.floats(1e-3, 1e3), min_size=14, max_size=14))
def test_scaling_each_vector_of_each_view_changes_nothing(
    pair: tuple[Tensor, Tensor], tau: float, scales: list[float]
) -> None:
    factors = torch.tensor(scales, dtype=torch.float64)[:, None]
    scaled = [view * factors[7 * i : 7 * i + len(view)] for i, view in enumerate(pair)]
    expected = nt_xent_loss(*pair, temperature=tau)
    torch.testing.assert_close(nt_xent_loss(*scaled, temperature=tau), expected, **CLOSE)


@given(views(), temperatures, seeds)
def test_a_rotation_of_both_views_changes_nothing(pair: tuple[Tensor, Tensor], tau: float, seed: int) -> None:
    width = pair[0].shape[1]
    square = torch.randn(width, width, generator=keyed_generator("cpu", seed), dtype=torch.float64)
    orthogonal = torch.linalg.qr(square).Q
    turned = nt_xent_loss(*(view @ orthogonal for view in pair), temperature=tau)
    torch.testing.assert_close(turned, nt_xent_loss(*pair, temperature=tau), **CLOSE)


@given(views(), temperatures)
def test_gradient_of_a_view_is_orthogonal_to_it(pair: tuple[Tensor, Tensor], tau: float) -> None:
    _, *gradients = views_value_and_gradients(*pair, tau)
    for view, gradient in zip(pair, gradients, strict=True):
        torch.testing.assert_close((view * gradient).sum(dim=-1), torch.zeros(len(view)).double(), **CLOSE)


@settings(max_examples=25)
@given(views(), st.sampled_from([0.3, 1.0, 5.0]))
def test_gradients_of_both_views_agree_with_finite_differences(pair: tuple[Tensor, Tensor], tau: float) -> None:
    assume(pair[0].shape[1] > 1)  # a normalized number is a sign: its derivative is 0 and its difference rounding
    inputs = tuple(view.requires_grad_() for view in pair)
    assert torch.autograd.gradcheck(lambda one, other: nt_xent_loss(one, other, temperature=tau), inputs)


@given(views(), temperatures)
def test_the_contrast_of_views_lies_between_zero_and_the_logarithm_of_the_others_plus_the_range_of_cosines(
    pair: tuple[Tensor, Tensor], tau: float
) -> None:
    value = float(nt_xent_loss(*pair, temperature=tau))
    ceiling = math.log(2 * len(pair[0]) - 1) + 2 / tau
    assert 0 <= value <= ceiling + SAME[torch.float64]


AWKWARD_VIEWS = {
    "no example": (torch.zeros(0, 3), torch.zeros(0, 3)),
    "one example": (torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 0.5]])),
    "exact copies": (torch.eye(4), torch.eye(4)),
    "all equal": (torch.ones(4, 3), torch.ones(4, 3)),
    "opposite views": (torch.eye(3), -torch.eye(3)),
    "zero vectors": (torch.zeros(4, 3), torch.zeros(4, 3)),
    "one view collapsed": (torch.eye(3), torch.zeros(3, 3)),
    "huge and tiny vectors": (torch.tensor([[1e18, 0.0], [1.0, 1.0]]), torch.tensor([[1e-18, 1e-18], [0.0, 1.0]])),
}


@pytest.mark.parametrize("tau", [1e-4, 0.05, 0.3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", AWKWARD_VIEWS)
def test_awkward_views_have_a_finite_value_and_gradient(name: str, dtype: torch.dtype, tau: float) -> None:
    one, other = AWKWARD_VIEWS[name]
    value, *gradients = views_value_and_gradients(one.to(dtype), other.to(dtype), tau)
    assert torch.isfinite(value)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
