"""The supervised contrast by other roads: equation 3 in plain loops, and another library."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss

from steadytune.functional import keyed_generator, supcon_loss
from tolerances import PRINTED, SAME

Rows = list[list[float]]

GENERAL: Rows = [[1, 2, 2], [2, 1, 2], [-1, 0, 1], [0, -3, 4], [3, 0, 0]]


def in_loops(rows: Rows, labels: list[int], tau: float) -> list[float]:
    """Equation 3 of Gunel et al., anchor by anchor, as it is printed."""
    unit = [[x / math.sqrt(math.fsum(y * y for y in row)) for x in row] for row in rows]

    def similarity(i: int, j: int) -> float:
        return math.fsum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / tau

    losses = []
    for i in range(len(rows)):
        others = [k for k in range(len(rows)) if k != i]
        positives = [j for j in others if labels[j] == labels[i]]
        mass = math.fsum(math.exp(similarity(i, k)) for k in others)
        shares = [math.log(math.exp(similarity(i, j)) / mass) for j in positives]
        losses.append(-math.fsum(shares) / len(positives) if positives else 0.0)
    return losses


def random_batch(seed: int, rows: int, classes: int) -> tuple[Rows, list[int]]:
    generator = keyed_generator("cpu", "oracle", seed)
    labels = torch.randint(classes, (rows,), generator=generator).tolist()
    return torch.randn(rows, 6, generator=generator, dtype=torch.float64).tolist(), labels


@pytest.mark.parametrize(
    ("labels", "tau", "anchors"),
    [
        ([0, 0, 1, 1, 2], 0.07, (0.000466, 0.041306, 0.009235, 0.037840, 0)),
        ([0, 0, 1, 1, 2], 0.3, (0.300751, 0.521987, 0.404795, 0.614816, 0)),
        ([0, 0, 1, 1, 2], 1.0, (0.941525, 1.024464, 0.942720, 1.101813, 0)),
        ([0, 0, 0, 1, 1], 0.3, (1.389396, 2.003468, 1.897576, 2.500434, 2.592284)),
    ],
)
def test_loops_give_the_printed_values_of_each_anchor(labels: list[int], tau: float, anchors: tuple[float]) -> None:
    assert in_loops(GENERAL, labels, tau) == pytest.approx(list(anchors), rel=0, abs=PRINTED[torch.float64])


BATCHES = [(seed, rows, classes) for seed, (rows, classes) in enumerate([(2, 1), (3, 2), (8, 2), (16, 3), (16, 12)])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tau", [0.07, 0.3, 1.0])
@pytest.mark.parametrize(("seed", "rows", "classes"), BATCHES)
def test_loss_equals_the_plain_loops(seed: int, rows: int, classes: int, tau: float, dtype: torch.dtype) -> None:
    vectors, labels = random_batch(seed, rows, classes)
    expected = math.fsum(in_loops(vectors, labels, tau)) / rows
    found = supcon_loss(torch.tensor(vectors, dtype=dtype), torch.tensor(labels), temperature=tau)
    assert float(found) == pytest.approx(expected, rel=SAME[dtype], abs=SAME[dtype])


@pytest.mark.parametrize("tau", [0.07, 0.3, 1.0])
@pytest.mark.parametrize(("seed", "rows", "classes"), BATCHES[2:])
def test_mean_valid_equals_pytorch_metric_learning(seed: int, rows: int, classes: int, tau: float) -> None:
    vectors, labels = random_batch(seed, rows, classes)
    ours, theirs = (torch.tensor(vectors, requires_grad=True, dtype=torch.float64) for _ in range(2))
    found = supcon_loss(ours, torch.tensor(labels), temperature=tau, reduction="mean_valid")
    expected = SupConLoss(temperature=tau)(theirs, torch.tensor(labels))
    torch.testing.assert_close(found, expected, rtol=SAME[torch.float64], atol=SAME[torch.float64])
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=SAME[torch.float64], atol=SAME[torch.float64])


def test_both_libraries_give_the_printed_value_of_mean_valid() -> None:
    z, labels = torch.tensor(GENERAL).double(), torch.tensor([0, 0, 1, 1, 2])
    values = [supcon_loss(z, labels, temperature=0.3, reduction="mean_valid"), SupConLoss(temperature=0.3)(z, labels)]
    assert [float(value) for value in values] == pytest.approx([0.460587] * 2, rel=0, abs=PRINTED[torch.float64])
