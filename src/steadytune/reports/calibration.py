"""Calibration: whether predictions are right as often as they say, and the temperature that helps."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize
from scipy.special import log_softmax

TEMPERATURES = (0.01, 100.0)


class ReliabilityBin(NamedTuple):
    """The predictions with a confidence in (low, high].

    Attributes:
        low: lower edge, left out.
        high: upper edge.
        rows: how many predictions.
        confidence: mean probability of the predicted class; None without rows.
        accuracy: share of right predictions; None without rows.
    """

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


def reliability(
    probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"], bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """Confidence beside accuracy, in bins of equal width.

    Args:
        probabilities: of each class; each row sums to 1.
        labels: true class of each row.
        bins: how many.
    Returns:
        All bins from 0 to 1, empty ones too.
    Raises:
        ValueError: no rows, rows that are not probabilities, an unknown class, or no bins.

    Source: Guo et al. 2017, §2.
    """
    _check_rows(probabilities, labels)
    if not (probabilities.min() >= 0 and np.allclose(probabilities.sum(axis=1, dtype=np.float64), 1, atol=1e-2)):
        raise ValueError("each row of probabilities must be ≥ 0 and sum to 1; these do not.")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    position = np.searchsorted(edges[1:-1], confidence, side="left")
    made = []
    for index in range(bins):
        inside = position == index
        rows = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if rows else (None, None)
        made.append(ReliabilityBin(float(edges[index]), float(edges[index + 1]), rows, *means))
    return tuple(made)


def expected_calibration_error(
    probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"], bins: int = 15
) -> float:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by rows; 0 to 1.

    Args:
        probabilities: of each class; each row sums to 1.
        labels: true class of each row.
        bins: how many; the value depends on it.
    Returns:
        A fraction.
    Raises:
        ValueError: as in `reliability`.

    Source: Guo et al. 2017, eq. 3; 15 bins as in their table 1.
    """
    parts = [
        part.rows * abs(part.accuracy - part.confidence)
        for part in reliability(probabilities, labels, bins)
        if part.accuracy is not None and part.confidence is not None
    ]
    return sum(parts) / len(labels)


def fit_temperature(logits: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"]) -> float:
    """The T that makes softmax(logits / T) likeliest; above 1 where the model is too sure.

    The likelihood has one maximum in T. It is sought between 0.01 and 100: logits that are right everywhere end at the
    lower bound, logits that are no better than chance at the upper one. Logits that are constant in each row say
    nothing about T and give 1.

    Args:
        logits: of held-out rows that neither training nor the final score uses.
        labels: true class of each row.
    Returns:
        T, without unit.
    Raises:
        ValueError: no rows, values that are not finite, or an unknown class.

    Source: Guo et al. 2017, §4.2.
    """
    _check_rows(logits, labels)
    wide = logits.astype(np.float64)
    if (np.ptp(wide, axis=1) == 0).all():
        return 1.0
    rows = np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        return -float(log_softmax(wide / math.exp(log_temperature), axis=1)[rows, labels].mean())

    low, high = (math.log(bound) for bound in TEMPERATURES)
    found = optimize.minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return math.exp(min(low, float(found.x), high, key=nll))  # the search itself only comes near a bound


def _check_rows(values: np.ndarray, labels: np.ndarray) -> None:
    if not 0 < len(labels) == len(values):
        raise ValueError(f"calibration needs rows, each with a label; got {len(values)} and {len(labels)} labels.")
    if not np.isfinite(values).all():
        raise ValueError("probabilities and logits must be finite; these are not all.")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise ValueError(
            f"labels must be classes from 0 to {values.shape[1] - 1}; got {labels.min()} to {labels.max()}."
        )
