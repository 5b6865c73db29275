"""The contrast of two views by other roads: plain loops, the supervised contrast, another library."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

from steadytune.functional import keyed_generator, nt_xent_loss, supcon_loss
from tolerances import PRINTED, SAME

Rows = list[list[float]]

CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
ONE: Rows = [[1, 0], [0, 1], [1, 1]]
OTHER: Rows = [[1, 0.1], [0.2, 1], [1, 0.8]]


def in_loops(one: Rows, other: Rows, tau: float) -> list[float]:
    """Minus the logarithm of the partner's share, anchor by anchor: first all of one view, then all of the other."""
    rows = [*one, *other]
    unit = [[x / math.sqrt(math.fsum(y * y for y in row)) for x in row] for row in rows]

    def similarity(i: int, j: int) -> float:
        return math.fsum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / tau

    losses = []
    for i in range(len(rows)):
        partner = i + len(one) if i < len(one) else i - len(one)
        mass = math.fsum(math.exp(similarity(i, k)) for k in range(len(rows)) if k != i)
        losses.append(-math.log(math.exp(similarity(i, partner)) / mass))
    return losses


def random_views(seed: int, rows: int) -> tuple[Rows, Rows]:
    generator = keyed_generator("cpu", "views", seed)
    one, other = torch.randn(2, rows, 6, generator=generator, dtype=torch.float64).tolist()
    return one, other


@pytest.mark.parametrize(
    ("tau", "anchors"),
    [
        (0.05, (0.016810, 0.005011, 0.056426, 0.054749, 0.062858, 0.068085)),
        (0.07, (0.061353, 0.025964, 0.161717, 0.140115, 0.153848, 0.183041)),
        (0.1, (0.160432, 0.089463, 0.352602, 0.278399, 0.296010, 0.377522)),
        (0.5, (0.937203, 0.867881, 1.251236, 1.024978, 1.048929, 1.252310)),
        (1.0, (1.216854, 1.178875, 1.424197, 1.270079, 1.288579, 1.423606)),
    ],
)
def test_loops_give_the_printed_values_of_each_anchor(tau: float, anchors: tuple[float, ...]) -> None:
    assert in_loops(ONE, OTHER, tau) == pytest.approx(list(anchors), rel=0, abs=PRINTED[torch.float64])


BATCHES = list(enumerate([1, 2, 3, 8, 15]))
every_batch = pytest.mark.parametrize(("seed", "rows"), BATCHES)
every_temperature = pytest.mark.parametrize("tau", [0.05, 0.1, 0.5, 1.0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_temperature
@every_batch
def test_loss_equals_the_plain_loops(seed: int, rows: int, tau: float, dtype: torch.dtype) -> None:
    one, other = random_views(seed, rows)
    expected = math.fsum(in_loops(one, other, tau)) / (2 * rows)
    found = nt_xent_loss(torch.tensor(one, dtype=dtype), torch.tensor(other, dtype=dtype), temperature=tau)
    assert float(found) == pytest.approx(expected, rel=SAME[dtype], abs=SAME[dtype])


@every_temperature
@every_batch
def test_it_is_the_supervised_contrast_with_one_class_for_each_example(seed: int, rows: int, tau: float) -> None:
    ours, theirs = (torch.tensor(random_views(seed, rows), dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = nt_xent_loss(*ours, temperature=tau)
    expected = supcon_loss(theirs.flatten(0, 1), torch.arange(rows).repeat(2), temperature=tau)
    torch.testing.assert_close(found, expected, **CLOSE)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)


@every_temperature
@pytest.mark.parametrize(("seed", "rows"), BATCHES[1:])
def test_it_equals_pytorch_metric_learning(seed: int, rows: int, tau: float) -> None:
    ours, theirs = (torch.tensor(random_views(seed, rows), dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = nt_xent_loss(*ours, temperature=tau)
    expected = SelfSupervisedLoss(NTXentLoss(temperature=tau))(*theirs)
    torch.testing.assert_close(found, expected, **CLOSE)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)


@pytest.mark.parametrize(("tau", "expected"), [(0.05, 0.043990), (0.1, 0.259071), (1.0, 1.300365)])
def test_both_libraries_give_the_printed_value(tau: float, expected: float) -> None:
    one, other = torch.tensor(ONE).double(), torch.tensor(OTHER).double()
    found = [nt_xent_loss(one, other, temperature=tau), SelfSupervisedLoss(NTXentLoss(temperature=tau))(one, other)]
    assert [float(value) for value in found] == pytest.approx([expected] * 2, rel=0, abs=PRINTED[torch.float64])
