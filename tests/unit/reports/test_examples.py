"""Confusions, rows that change sides, calibration over seeds and the plane of vectors."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from steadytune.reports.calibration import expected_calibration_error, fit_temperature
from steadytune.reports.examples import (
    Flip,
    calibrated,
    chosen_rows,
    confusion_counts,
    flips,
    plane,
    quintiles,
    right_shares,
)
from steadytune.reports.predictions import Answers, Predictions
from tolerances import SAME


def said(answers: list[int], labels: list[int], classes: int = 3) -> Predictions:
    return Predictions([f"r{index}" for index in range(len(labels))], np.array(labels), np.eye(classes)[answers])


def answered(answers: list[int], labels: list[int]) -> Answers:
    return said(answers, labels).answers


def test_confusions_are_summed_over_runs() -> None:
    runs = [said([0, 1, 1], [0, 0, 1]), said([0, 0, 2], [0, 0, 1])]
    assert confusion_counts(runs, 3).tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_a_row_changes_sides_where_most_seeds_do() -> None:
    labels = [0, 0, 0]
    before = [answered([1, 0, 1], labels), answered([2, 0, 0], labels), answered([1, 1, 0], labels)]
    after = [answered([0, 1, 0], labels), answered([0, 1, 1], labels), answered([1, 1, 0], labels)]
    won, lost = flips(before, after)
    assert won == [Flip("r0", 0, 1, 0, 0.0, 2 / 3)]
    assert lost == [Flip("r1", 0, 0, 1, 2 / 3, 0.0)]


def test_half_of_the_seeds_are_not_most() -> None:
    before, after = [answered([1], [0]), answered([0], [0])], [answered([0], [0]), answered([0], [0])]
    assert flips(before, after) == ([], [])


def test_a_row_that_one_recipe_never_scored_does_not_count() -> None:
    assert flips([answered([1], [0])], [Answers(["other"], [0], [0])]) == ([], [])


def test_an_answer_of_several_parts_changes_sides_as_a_whole() -> None:
    before, after = Answers(["r0"], [(0, 2)], [(0, 1, 2)]), Answers(["r0"], [(0, 2)], [(0, 2)])
    assert flips([before], [after]) == ([Flip("r0", (0, 2), (0, 1, 2), (0, 2), 0.0, 1.0)], [])


def test_each_row_has_the_share_of_runs_that_are_right() -> None:
    runs = [answered([0, 1], [0, 0]), answered([0, 0], [0, 0]), Answers(["r0"], [0], [1])]
    assert right_shares(runs) == {"r0": 2 / 3, "r1": 1 / 2}


def test_each_seed_is_scaled_by_the_temperature_of_its_own_dev_rows() -> None:
    random = np.random.default_rng(0)
    ids, labels = [str(index) for index in range(30)], np.arange(30) % 3
    pairs = [
        tuple(Predictions(ids, labels, scale * (random.normal(size=(30, 3)) + np.eye(3)[labels])) for _ in range(2))
        for scale in (1.0, 4.0)
    ]
    found = calibrated([(dev, test) for dev, test in pairs])
    assert found is not None
    for index, (dev, test) in enumerate(pairs):
        temperature = fit_temperature(dev.logits, dev.labels)
        assert found.temperatures[index] == temperature
        assert found.before[index] == expected_calibration_error(softmax(test.logits, axis=1), labels)
        scaled = expected_calibration_error(softmax(test.logits / temperature, axis=1), labels)
        assert found.after[index] == pytest.approx(scaled, rel=SAME[torch.float64])
    assert sum(part.rows for part in found.bins_before) == sum(part.rows for part in found.bins_after) == 60


def test_without_dev_rows_there_is_no_temperature() -> None:
    found = calibrated([(None, said([0, 1], [0, 0]))])
    assert found is not None
    assert (found.temperatures, found.after, found.bins_after) == ([], [], ())


def test_without_a_run_there_is_no_calibration() -> None:
    assert calibrated([]) is None


def test_the_plane_is_the_same_each_time_and_keeps_groups_apart() -> None:
    random, groups = np.random.default_rng(0), np.arange(60) % 2
    vectors = random.normal(size=(60, 5)) + 50 * groups[:, None]
    first, second = plane(vectors), plane(vectors)
    assert first is not None
    assert second is not None
    assert np.array_equal(first, second)
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1) + 1e9 * np.eye(60)
    assert (groups[apart.argmin(axis=1)] == groups).all()  # the nearest neighbor is of the same group


@pytest.mark.parametrize("vectors", [np.zeros((4, 2)), np.zeros((9, 2)), np.full((9, 2), np.inf)])
def test_vectors_that_say_nothing_have_no_plane(vectors: np.ndarray) -> None:
    assert plane(vectors) is None


def test_at_most_500_rows_are_chosen_evenly() -> None:
    assert chosen_rows(3).tolist() == [0, 1, 2]
    assert chosen_rows(9, 3).tolist() == [0, 4, 8]
    assert len(chosen_rows(10_000)) == 500


def test_quintiles_name_their_bounds() -> None:
    classes, names = quintiles(np.arange(10.0))
    assert classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert names[0] == "0 to 1.8"
    assert len(names) == 5
