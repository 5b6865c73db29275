"""What holds for the statistics of every study: invariances, bounds, and how often verdicts err and succeed."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from steadytune.reports.calibration import expected_calibration_error, fit_temperature, reliability
from steadytune.reports.statistics import (
    PairedComparison,
    cannot_decide,
    holm,
    mean_and_sd,
    paired_comparison,
    verdicts,
)
from tolerances import MINIMIZED, SAME

scores = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
pairs = st.lists(st.tuples(scores, scores), min_size=8, max_size=10)
seeds = st.integers(0, 2**32 - 1)
p_values = st.lists(st.floats(0, 1), max_size=8)
few = settings(max_examples=25)  # for what takes milliseconds each


def same(value: Any) -> Any:
    return pytest.approx(value, rel=SAME[torch.float64], abs=SAME[torch.float64])


def compared(of: Iterable[tuple[float, float]]) -> PairedComparison:
    baseline, other = zip(*of, strict=True)
    return paired_comparison(list(baseline), list(other))


def without_unit(comparison: PairedComparison) -> list[float]:
    values = comparison.p_value, comparison.effect_size, comparison.permutation_p_value
    return [math.inf if value is None else value for value in values]


def in_units(comparison: PairedComparison) -> list[float]:
    assert comparison.interval and comparison.bootstrap_interval
    return [comparison.mean or 0.0, comparison.sd or 0.0, *comparison.interval, *comparison.bootstrap_interval]


# -- paired comparison ------------------------------------------------------------------------------------------------


@few
@given(pairs, st.floats(-10, 10))
def test_a_common_shift_of_all_scores_changes_nothing(study: list[tuple[float, float]], shift: float) -> None:
    original, shifted = compared(study), compared((a + shift, b + shift) for a, b in study)
    assert without_unit(shifted) == same(without_unit(original))
    assert in_units(shifted) == same(in_units(original))


@few
@given(pairs, st.floats(1e-2, 1e2))
def test_a_common_scale_of_all_scores_scales_what_has_their_unit(
    study: list[tuple[float, float]], scale: float
) -> None:
    original, scaled = compared(study), compared((a * scale, b * scale) for a, b in study)
    assert without_unit(scaled) == same(without_unit(original))
    assert in_units(scaled) == same([scale * value for value in in_units(original)])


@few
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_count(study: list[tuple[float, float]], random: Any) -> None:
    shuffled = list(study)
    random.shuffle(shuffled)
    original, moved = compared(study), compared(shuffled)
    assert without_unit(moved) == same(without_unit(original))
    assert in_units(moved) == same(in_units(original))


@given(pairs, st.randoms(use_true_random=False))
def test_the_order_in_which_seeds_are_listed_does_not_count(study: list[tuple[float, float]], random: Any) -> None:
    order = list(range(len(study)))
    random.shuffle(order)
    baseline, other = ({seed: study[seed][side] for seed in order} for side in (0, 1))
    assert paired_comparison(baseline, other) == compared(study)


@few
@given(pairs)
def test_the_other_way_round_is_the_mirror_image(study: list[tuple[float, float]]) -> None:
    forth, back = compared(study), compared((b, a) for a, b in study)
    assert (back.p_value, back.permutation_p_value) == same((forth.p_value, forth.permutation_p_value))
    assert forth.interval and back.interval
    assert (-back.interval.high, -back.interval.low) == same(tuple(forth.interval))


@given(pairs, st.data())
def test_a_seed_without_a_score_counts_as_if_it_had_not_run(study: list[tuple[float, float]], data: Any) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(study), max_size=len(study)))
    missing = [(a, b if keep else math.nan) for (a, b), keep in zip(study, kept, strict=True)]
    left = [pair for pair, keep in zip(study, kept, strict=True) if keep]
    baseline, other = [a for a, _ in left], [b for _, b in left]
    found, expected = compared(missing), paired_comparison(baseline, other)
    assert (found.differences, found.p_value, found.interval) == (
        expected.differences,
        expected.p_value,
        expected.interval,
    )


@given(pairs)
def test_the_t_test_rejects_exactly_where_its_interval_excludes_0(study: list[tuple[float, float]]) -> None:
    comparison = compared(study)
    assert comparison.interval and comparison.p_value is not None
    assert comparison.interval.excludes(0.0) == (comparison.p_value < 0.05)


@given(st.lists(st.tuples(scores, scores), max_size=4))
def test_below_five_pairs_nothing_is_evidence(study: list[tuple[float, float]]) -> None:
    baseline, other = [a for a, _ in study], [b for _, b in study]
    assert verdicts({"a": paired_comparison(baseline, other)})["a"].outcome == "no evidence"


@given(st.lists(scores, min_size=2, max_size=10), scores, st.floats(1e-2, 1e2), st.floats(-10, 10))
def test_whether_data_can_decide_does_not_hang_on_the_unit(
    baseline: list[float], chance: float, scale: float, shift: float
) -> None:
    mean, sd = mean_and_sd(baseline)
    assert mean is not None and sd is not None
    margins = [abs(abs(mean - bound) - 2 * sd / math.sqrt(len(baseline))) for bound in (chance, 1.0)]
    if sd and min(margins) < MINIMIZED:
        return  # on the edge rounding may decide
    moved = cannot_decide([scale * one + shift for one in baseline], scale * chance + shift, scale + shift)
    assert (moved is None) == (cannot_decide(baseline, chance) is None)


# -- Holm -------------------------------------------------------------------------------------------------------------


@given(p_values, st.floats(0.001, 0.999))
def test_holm_rejects_what_the_stepwise_rule_rejects(values: list[float], alpha: float) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[index] * (len(values) - step) > alpha:
            break
        rejected.add(index)
    assert {index for index, adjusted in enumerate(holm(values)) if adjusted <= alpha} == rejected


@given(p_values)
def test_an_adjusted_p_is_no_smaller_and_at_most_1(values: list[float]) -> None:
    assert all(p <= adjusted <= 1 for p, adjusted in zip(values, holm(values), strict=True))


@given(p_values, st.randoms(use_true_random=False))
def test_the_order_of_the_hypotheses_does_not_count(values: list[float], random: Any) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    adjusted = holm(values)
    assert holm([values[index] for index in order]) == [adjusted[index] for index in order]


# -- calibration ------------------------------------------------------------------------------------------------------


@st.composite
def predictions(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels that a temperature between the bounds fits best: neither always right nor worse than chance."""
    rows, classes = draw(st.integers(20, 60)), draw(st.integers(2, 5))
    random = np.random.default_rng(draw(seeds))
    logits = random.normal(size=(rows, classes))
    labels = np.where(random.random(rows) < 0.7, logits.argmax(axis=1), logits.argmin(axis=1))
    labels[0], labels[1] = logits[0].argmin(), logits[1].argmax()
    return logits, labels


@given(predictions(), st.integers(1, 30))
def test_calibration_error_lies_between_0_and_1_and_every_row_in_one_bin(
    made: tuple[np.ndarray, np.ndarray], bins: int
) -> None:
    probabilities = softmax(made[0], axis=1)
    assert 0 <= expected_calibration_error(probabilities, made[1], bins) <= 1
    assert sum(part.rows for part in reliability(probabilities, made[1], bins)) == len(made[1])


@given(predictions(), st.integers(1, 30))
def test_a_mean_confidence_lies_in_its_bin(made: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    for part in reliability(softmax(made[0], axis=1), made[1], bins):
        assert part.confidence is None or part.low - 1e-12 <= part.confidence <= part.high + 1e-12


@given(predictions(), st.integers(1, 30), st.randoms(use_true_random=False))
def test_the_names_of_the_classes_do_not_count_in_calibration(
    made: tuple[np.ndarray, np.ndarray], bins: int, random: Any
) -> None:
    probabilities, labels = softmax(made[0], axis=1), made[1]
    names = list(range(probabilities.shape[1]))
    random.shuffle(names)
    renamed = np.array([names.index(label) for label in labels])
    expected = expected_calibration_error(probabilities, labels, bins)
    assert expected_calibration_error(probabilities[:, names], renamed, bins) == same(expected)


@few
@given(predictions())
def test_no_other_temperature_is_likelier(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    found = fit_temperature(logits, labels)

    def nll(temperature: float) -> float:
        return -float(log_softmax(logits / temperature, axis=1)[range(len(labels)), labels].mean())

    others = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0, found * 0.99, found * 1.01]
    assert nll(found) <= min(nll(other) for other in others if 0.01 <= other <= 100) + SAME[torch.float64]


@few
@given(predictions(), st.floats(0.5, 2.0))
def test_a_temperature_scales_with_its_logits(made: tuple[np.ndarray, np.ndarray], scale: float) -> None:
    logits, labels = made
    found = fit_temperature(logits, labels)
    if 0.05 < found < 20:  # neither at a bound
        assert fit_temperature(scale * logits, labels) == pytest.approx(scale * found, rel=MINIMIZED)


@few
@given(predictions(), seeds)
def test_a_constant_added_to_a_row_does_not_change_the_temperature(
    made: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    logits, labels = made
    shift = np.random.default_rng(seed).normal(size=(len(labels), 1))
    assert fit_temperature(logits + shift, labels) == pytest.approx(fit_temperature(logits, labels), rel=MINIMIZED)


# -- how often verdicts err and succeed -------------------------------------------------------------------------------

STUDIES, COMPARISONS = 1000, 5


def simulated(random: np.random.Generator, comparisons: int, runs: int, effect: float) -> dict[str, PairedComparison]:
    """One study: a part that recipes share with their seed, a part of the run alone; the effect is in sd of pairs."""
    shared = random.normal(scale=2.0, size=runs)
    baseline, *others = shared + random.normal(size=(1 + comparisons, runs))
    others[0] = others[0] + effect * math.sqrt(2)  # a difference of two runs has sd √2
    return {str(index): paired_comparison(baseline, other) for index, other in enumerate(others)}


@pytest.fixture(scope="module")
def null_studies() -> list[dict[str, PairedComparison]]:
    """In turn with 5 and with 10 seeds."""
    random = np.random.default_rng(0)
    return [simulated(random, COMPARISONS, (5, 10)[index % 2], effect=0.0) for index in range(STUDIES)]


def test_five_comparisons_without_difference_give_a_verdict_in_one_study_of_twenty_at_most(
    null_studies: list[dict[str, PairedComparison]],
) -> None:
    false = sum(any(one.outcome != "no evidence" for one in verdicts(study).values()) for study in null_studies)
    assert false / STUDIES <= 0.064  # 0.05 and two standard errors of 1000 studies


def test_without_correction_five_comparisons_would_err_more_often(
    null_studies: list[dict[str, PairedComparison]],
) -> None:
    alone = [[verdicts({name: comparison})[name] for name, comparison in study.items()] for study in null_studies]
    assert sum(any(one.outcome != "no evidence" for one in study) for study in alone) / STUDIES > 2 * 0.064


@pytest.mark.parametrize("comparisons", [1, COMPARISONS])
def test_an_effect_of_one_and_a_half_sd_is_found_with_ten_seeds(comparisons: int) -> None:
    random = np.random.default_rng(comparisons)
    studies = [verdicts(simulated(random, comparisons, 10, effect=1.5)) for _ in range(300)]
    assert sum(study["0"].outcome == "better" for study in studies) / 300 >= 0.85
