"""Calibration gives the values of hand computation and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special

from steadytune.reports.calibration import expected_calibration_error, fit_temperature, reliability
from tolerances import MINIMIZED, SAME, STANDARD_ERRORS

NAN = float("nan")


def same(value: Any) -> Any:
    return pytest.approx(value, rel=SAME[torch.float64], abs=SAME[torch.float64])


PROBABILITIES = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7], [0.55, 0.45]])
TRUTH = np.array([0, 0, 1, 0])  # right, wrong, right, right


def test_calibration_error_by_hand() -> None:
    # (0.8, 1]: 2 rows, confidence 0.9, accuracy 0.5; (0.6, 0.8]: 1 row, 0.7, 1; (0.4, 0.6]: 1 row, 0.55, 1
    expected = 2 / 4 * 0.4 + 1 / 4 * 0.3 + 1 / 4 * 0.45
    assert expected_calibration_error(PROBABILITIES, TRUTH, bins=5) == same(expected)


def test_calibration_error_in_one_bin_is_accuracy_beside_mean_confidence() -> None:
    assert expected_calibration_error(PROBABILITIES, TRUTH, bins=1) == same(abs(3 / 4 - (0.9 + 0.9 + 0.7 + 0.55) / 4))


def test_confidence_that_is_right_as_often_as_it_says_has_no_error() -> None:
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert expected_calibration_error(probabilities, np.array([0, 0, 0, 1])) == 0.0


def test_reliability_by_hand() -> None:
    found = reliability(PROBABILITIES, TRUTH, bins=5)
    assert [part.rows for part in found] == [0, 0, 1, 1, 2]
    assert [(part.confidence, part.accuracy) for part in found] == [
        (None, None),
        (None, None),
        (same(0.55), 1.0),
        (same(0.7), 1.0),
        (same(0.9), 0.5),
    ]
    assert [part.low for part in found] == same([0, 0.2, 0.4, 0.6, 0.8])
    assert [part.high for part in found] == same([0.2, 0.4, 0.6, 0.8, 1])


def test_a_confidence_on_an_edge_belongs_below_it() -> None:
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert [part.rows for part in reliability(probabilities, np.zeros(3, dtype=int), bins=4)] == [0, 1, 1, 1]


def test_probabilities_of_a_lower_precision_are_taken() -> None:
    halves = special.softmax(np.random.default_rng(0).normal(size=(50, 7)), axis=1).astype(np.float16)
    labels = np.arange(50) % 7
    assert expected_calibration_error(halves, labels) == same(
        expected_calibration_error(halves.astype(np.float64), labels)
    )


@pytest.mark.parametrize(
    ("values", "labels", "bins", "named"),
    [
        (np.zeros((0, 2)), [], 15, "needs rows, each with a label; got 0"),
        (PROBABILITIES * 3, TRUTH, 15, "sum to 1"),
        (PROBABILITIES - [1.0, -1.0], TRUTH, 15, "≥ 0"),
        (PROBABILITIES * NAN, TRUTH, 15, "finite"),
        (PROBABILITIES, [0, 0, 1, 2], 15, "labels must be classes from 0 to 1; got 0 to 2"),
        (PROBABILITIES, [0, 0, 1, -100], 15, "labels must be classes from 0 to 1; got -100 to 1"),
        (PROBABILITIES, TRUTH, 0, "bins must be at least 1"),
    ],
)
def test_calibration_names_what_is_wrong(values: np.ndarray, labels: list[int], bins: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        reliability(values, np.array(labels, dtype=int), bins)


def test_temperature_of_a_constant_margin_is_the_one_that_makes_confidence_the_accuracy() -> None:
    # Two classes, margin 3, four of five right: sigmoid(3 / T) = 0.8 where T = 3 / ln 4
    logits, labels = np.tile([3.0, 0.0], (5, 1)), np.array([0, 0, 0, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(3 / math.log(4), rel=MINIMIZED)


def test_temperature_is_recovered_from_drawn_labels() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=(20_000, 4)) * 2
    chances = special.softmax(truth, axis=1)
    labels = (random.random((20_000, 1)) > chances.cumsum(axis=1)[:, :-1]).sum(axis=1)
    temperature = 2.5
    found = fit_temperature(temperature * truth, labels)
    # Fisher information about 1 / T: the variance of the given logits under the true chances, summed over rows
    logits = temperature * truth
    information = ((chances * logits**2).sum(axis=1) - (chances * logits).sum(axis=1) ** 2).sum()
    assert 1 / found == pytest.approx(1 / temperature, abs=STANDARD_ERRORS / math.sqrt(information))
    assert STANDARD_ERRORS / math.sqrt(information) < 0.02  # near enough that 1 would not pass


def test_logits_that_say_nothing_have_temperature_1() -> None:
    assert fit_temperature(np.full((3, 2), 5.0), np.array([0, 1, 1])) == 1.0


@pytest.mark.parametrize(("labels", "bound"), [([0, 0, 0], 0.01), ([1, 1, 1], 100.0)])
def test_temperature_without_an_optimum_ends_at_its_bound(labels: list[int], bound: float) -> None:
    logits = np.tile([0.1, 0.0], (3, 1))
    assert fit_temperature(logits, np.array(labels)) == same(bound)


def test_temperature_needs_finite_logits() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.array([[math.inf, 0.0]]), np.array([0]))
