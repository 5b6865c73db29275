"""Comparison, verdict and power give the values of hand computation, closed forms and textbooks."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from steadytune.reports.statistics import (
    Interval,
    PairedComparison,
    bootstrap_interval,
    cannot_decide,
    chance_level,
    detectable_difference,
    holm,
    mean_and_sd,
    paired_comparison,
    paired_power,
    split_gain,
    verdicts,
)
from tolerances import PRINTED, SAME, STANDARD_ERRORS

NAN = float("nan")

# Hours of sleep won with two drugs, ten patients: Student 1908, table on p. 20; data set `sleep` of R.
FIRST_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def same(value: Any) -> Any:
    return pytest.approx(value, rel=SAME[torch.float64], abs=SAME[torch.float64])


def printed(value: Any) -> Any:
    return pytest.approx(value, rel=0, abs=PRINTED[torch.float64])


def differing_by(*differences: float) -> PairedComparison:
    return paired_comparison([0.0] * len(differences), list(differences))


# -- mean and spread --------------------------------------------------------------------------------------------------


def test_mean_and_sd_divide_by_n_and_by_n_minus_1() -> None:
    assert mean_and_sd([1.0, 2.0, 3.0, 4.0]) == same((2.5, math.sqrt((2.25 + 0.25 + 0.25 + 2.25) / 3)))


@pytest.mark.parametrize(
    ("values", "expected"), [([], (None, None)), ([NAN], (None, None)), ([0.5], (0.5, None)), ([0.5, 0.5], (0.5, 0.0))]
)
def test_mean_and_sd_of_too_few_values_are_none(values: list[float], expected: tuple[float | None, ...]) -> None:
    assert mean_and_sd(values) == expected


def test_mean_and_sd_leave_out_what_is_not_finite() -> None:
    assert mean_and_sd({0: 1.0, 1: None, 2: 3.0, 3: NAN, 4: math.inf}) == same((2.0, math.sqrt(2)))


def test_bootstrap_interval_of_two_values_spans_them() -> None:
    # A resample has the mean low, between or high with probability 1/4, 1/2, 1/4, each more than 2.5 %.
    assert bootstrap_interval([0.3, 0.1]) == same((0.1, 0.3))


def test_bootstrap_interval_leaves_out_a_fortieth_of_all_resamples_on_each_side() -> None:
    values = [0.0, 1.0, 1.5, 3.5, 4.0]
    means = np.array([sum(resample) / 5 for resample in itertools.product(values, repeat=5)])  # all 3125
    low, high = bootstrap_interval(values, seed=3) or (NAN, NAN)
    error = STANDARD_ERRORS * math.sqrt(0.025 * 0.975 / 10_000)
    assert (means < low).mean() <= 0.025 + error and (means <= low).mean() >= 0.025 - error
    assert (means > high).mean() <= 0.025 + error and (means >= high).mean() >= 0.025 - error


def test_bootstrap_interval_repeats_with_its_seed() -> None:
    values = np.random.default_rng(0).normal(size=9)
    assert bootstrap_interval(values, 1) == bootstrap_interval(values, 1) != bootstrap_interval(values, 2)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, NAN]])
def test_bootstrap_interval_of_too_few_values_is_none(values: list[float]) -> None:
    assert bootstrap_interval(values) is None


def test_bootstrap_interval_of_equal_values_has_width_0() -> None:
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_an_interval_holds_its_ends() -> None:
    assert not Interval(0.0, 1.0).excludes(0.0) and not Interval(-1.0, 0.0).excludes(0.0)
    assert Interval(0.1, 1.0).excludes(0.0) and Interval(-1.0, -0.1).excludes(0.0)


# -- paired comparison ------------------------------------------------------------------------------------------------


def test_the_interval_of_students_data_is_that_of_the_textbook() -> None:
    # R 4, t.test(Pair(SECOND_DRUG, FIRST_DRUG) ~ 1): mean 1.58, 95 percent 0.7001142 to 2.4598858
    comparison = paired_comparison(FIRST_DRUG, SECOND_DRUG)
    assert (comparison.mean, comparison.interval) == (printed(1.58), printed((0.7001142, 2.4598858)))


def test_p_of_students_data_is_that_of_the_textbook() -> None:
    assert paired_comparison(FIRST_DRUG, SECOND_DRUG).p_value == printed(0.002833)  # R: t = 4.0621, df = 9


def test_the_effect_size_of_students_data_is_t_over_root_n() -> None:
    comparison = paired_comparison(FIRST_DRUG, SECOND_DRUG)
    assert comparison.sd == printed(1.229995)
    assert comparison.effect_size == printed(1.58 / 1.2299955)


def test_two_pairs_follow_the_cauchy_distribution() -> None:
    comparison = differing_by(0.1, 0.3)  # mean 0.2, standard error 0.1, t = 2 with one degree of freedom
    half_width = math.tan(math.pi * 0.475) * 0.1
    assert comparison.interval == same((0.2 - half_width, 0.2 + half_width))
    assert comparison.p_value == same(1 - 2 / math.pi * math.atan(2))


def test_three_pairs_follow_the_closed_form_of_two_degrees_of_freedom() -> None:
    comparison = differing_by(0.0, 0.1, 0.2)  # mean 0.1, sd 0.1; P(T ≤ t) = 1/2 + t / (2 √(2 + t²))
    t = math.sqrt(3)
    assert comparison.p_value == same(1 - t / math.sqrt(2 + t**2))
    half_width = math.sqrt(8 * 0.475**2 / (1 - 4 * 0.475**2)) * 0.1 / math.sqrt(3)
    assert comparison.interval == same((0.1 - half_width, 0.1 + half_width))


def test_differences_are_other_minus_baseline() -> None:
    comparison = paired_comparison([0.5, 0.75], [0.75, 0.5])
    assert comparison.differences == (0.25, -0.25)


def test_a_seed_without_both_scores_is_dropped_by_name() -> None:
    baseline = {0: 0.1, 1: 0.2, 2: None, 3: 0.4, 4: 0.5, 7: 0.6}
    other = {9: 0.9, 4: 0.75, 3: NAN, 2: 0.3, 1: 0.25, 0: 0.25}
    comparison = paired_comparison(baseline, other)
    assert (comparison.seeds, comparison.dropped, comparison.n) == ((0, 1, 4), (2, 3, 7, 9), 3)
    assert comparison.differences == same((0.15, 0.05, 0.25))


def test_a_place_in_a_sequence_is_a_seed() -> None:
    by_place = paired_comparison(np.array([0.1, NAN, 0.3]), [0.2, 0.5, 0.7])
    assert by_place == paired_comparison({0: 0.1, 2: 0.3, 1: None}, {0: 0.2, 1: 0.5, 2: 0.7})


@pytest.mark.parametrize("scores", [[], [NAN, None]])
def test_no_pair_gives_no_number(scores: list[float | None]) -> None:
    comparison = paired_comparison(scores, scores)
    assert (comparison.n, comparison.mean, comparison.sd, comparison.interval) == (0, None, None, None)
    assert (comparison.p_value, comparison.effect_size, comparison.bootstrap_interval) == (None, None, None)


def test_one_pair_gives_its_difference_alone() -> None:
    comparison = paired_comparison([0.25, 0.5], [0.75, NAN])
    assert (comparison.n, comparison.mean, comparison.sd, comparison.interval) == (1, 0.5, None, None)
    assert (comparison.p_value, comparison.effect_size, comparison.bootstrap_interval) == (None, None, None)


def test_equal_scores_have_p_1_and_an_interval_at_0() -> None:
    comparison = paired_comparison([0.1, 0.2, 0.7], [0.1, 0.2, 0.7])
    assert (comparison.p_value, comparison.interval, comparison.sd, comparison.effect_size) == (1.0, (0, 0), 0.0, None)


def test_differences_that_are_equal_but_for_rounding_have_p_0_and_an_interval_of_width_0() -> None:
    baseline, other = [0.1, 0.2, 0.3, 0.7], [0.2, 0.3, 0.4, 0.8]
    assert len({b - a for a, b in zip(baseline, other, strict=True)}) > 1  # floating point sees a spread
    comparison = paired_comparison(baseline, other)
    assert (comparison.p_value, comparison.sd, comparison.effect_size) == (0.0, 0.0, None)
    assert comparison.interval == same((0.1, 0.1))
    assert comparison.bootstrap_interval == comparison.interval


def test_differences_that_are_0_but_for_rounding_have_p_1() -> None:
    baseline, other = [0.3, 0.3, 0.5], [0.1 + 0.2, 0.3, 0.5]
    assert other[0] != baseline[0]
    assert paired_comparison(baseline, other).p_value == 1.0


def test_mappings_pair_with_mappings_alone() -> None:
    with pytest.raises(ValueError, match="all be mappings from seed to score, or all sequences"):
        paired_comparison({0: 0.5}, [0.5])


def test_sequences_pair_at_one_length_alone() -> None:
    with pytest.raises(ValueError, match=r"same length; got \[2, 3\]"):
        paired_comparison([0.5, 0.5], [0.5, 0.5, 0.5])


# -- permutations -----------------------------------------------------------------------------------------------------


def test_permutation_p_of_students_data_counts_the_patterns_that_keep_every_sign() -> None:
    # No difference is negative and one is 0: of 1024 patterns 2 have the largest mean and 2 the smallest.
    assert paired_comparison(FIRST_DRUG, SECOND_DRUG).permutation_p_value == same(4 / 1024)


def test_permutation_p_is_the_share_of_sign_patterns_with_a_mean_as_far_from_0() -> None:
    differences = [0.5, -0.25, 0.75, 0.125, 0.375, -0.25, 0.625, 0.25]  # sums without rounding
    sums = [
        sum(sign * size for sign, size in zip(signs, differences, strict=True))
        for signs in itertools.product((-1, 1), repeat=8)
    ]
    as_far = sum(abs(one) >= abs(sum(differences)) for one in sums)
    assert differing_by(*differences).permutation_p_value == same(as_far / 256)


def test_sums_of_score_steps_tie_despite_their_rounding() -> None:
    steps = [0.1, 0.2, -0.3, 0.1, -0.1, 0.3, -0.2, -0.1]
    assert 0 < abs(sum(steps)) < 1e-12  # 0 but for rounding, which no pattern is nearer than
    assert differing_by(*steps).permutation_p_value == 1.0


def test_permutation_p_needs_8_pairs() -> None:
    differences = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert differing_by(*differences[:7]).permutation_p_value is None
    assert differing_by(*differences).permutation_p_value == same(2 / 256)


def test_permutation_p_of_equal_scores_is_1() -> None:
    assert differing_by(*[0.0] * 8).permutation_p_value == 1.0


def test_permutation_p_of_many_pairs_is_near_the_exact_one() -> None:
    differences = np.random.default_rng(5).integers(-64, 128, size=17) / 128  # sums without rounding
    signs = np.array(list(itertools.product((-1, 1), repeat=17)))
    exact = float((np.abs(signs @ differences) >= abs(differences.sum())).mean())
    error = math.sqrt(exact * (1 - exact) / 100_000)
    p = differing_by(*differences).permutation_p_value
    assert p == pytest.approx(exact, abs=STANDARD_ERRORS * error) and p != exact


def test_random_permutations_repeat_with_their_seed() -> None:
    other = list(np.random.default_rng(5).normal(0.5, 1.0, size=20))
    first, again, elsewhere = (paired_comparison([0.0] * 20, other, seed=seed) for seed in (1, 1, 2))
    assert first.permutation_p_value == again.permutation_p_value != elsewhere.permutation_p_value


def test_random_permutations_do_not_hang_on_the_order_of_the_seeds() -> None:
    differences = list(np.random.default_rng(5).normal(0.5, 1.0, size=20))
    turned = differing_by(*reversed(differences))
    assert turned.permutation_p_value == differing_by(*differences).permutation_p_value


# -- Holm and verdicts ------------------------------------------------------------------------------------------------


def test_holm_multiplies_by_the_hypotheses_that_are_left_and_never_falls() -> None:
    # ascending: 0.005 × 4 = 0.02, 0.01 × 3 = 0.03, 0.03 × 2 = 0.06, 0.04 × 1 = 0.04 but not below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == same([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(
    ("p_values", "expected"), [([], []), ([0.2], [0.2]), ([0.6, 0.7], [1.0, 1.0]), ([0.0, 1.0], [0.0, 1.0])]
)
def test_holm_at_the_edges(p_values: list[float], expected: list[float]) -> None:
    assert holm(p_values) == same(expected)


@pytest.mark.parametrize("wrong", [NAN, -0.1, 1.1])
def test_holm_refuses_what_is_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, wrong])


CLEAR = (0.010, 0.012, 0.011, 0.009, 0.013)  # mean 0.011, standard error 0.0007: t = 15.6, p = 0.0001
CLOSE_CALL = (0.010, 0.020, 0.001, 0.012, 0.016)  # mean 0.0118, standard error 0.0032: t = 3.69, p = 0.021
NOTHING = (0.010, -0.010, 0.002, 0.004, -0.006)  # mean 0


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [(CLEAR, "better"), ([-d for d in CLEAR], "worse"), (CLOSE_CALL, "better"), (NOTHING, "no evidence")],
)
def test_one_comparison_is_decided_by_its_own_p(differences: tuple[float, ...], outcome: str) -> None:
    assert verdicts({"a": differing_by(*differences)})["a"].outcome == outcome


def test_a_close_call_alone_is_no_evidence_among_three() -> None:
    # p × 2 beside one clear case, p × 3 beside none
    clear, close, nothing = (differing_by(*each) for each in (CLEAR, CLOSE_CALL, NOTHING))
    assert close.p_value is not None and 0.05 / 3 < close.p_value < 0.05 / 2
    beside_clear = verdicts({"close": close, "clear": clear, "nothing": nothing})
    assert [beside_clear[name].outcome for name in ("close", "clear", "nothing")] == ["better", "better", "no evidence"]
    beside_none = verdicts({"close": close, "nothing": nothing, "also nothing": nothing})
    assert beside_none["close"].outcome == "no evidence"
    assert beside_none["close"].adjusted_p_value == same(3 * close.p_value)


def test_four_pairs_are_never_evidence() -> None:
    four = differing_by(0.10, 0.1001, 0.1002, 0.0999)
    assert four.p_value is not None and four.p_value < 1e-6
    verdict = verdicts({"a": four})["a"]
    assert (verdict.outcome, verdict.adjusted_p_value) == ("no evidence", None)
    assert verdict.reason == "A verdict needs at least 5 seeds with both scores; there are 4."


def test_a_verdict_says_how_many_seeds_lack_a_score() -> None:
    comparison = paired_comparison([0.5] * 6, [0.7, NAN, 0.71, 0.72, NAN, 0.69])
    assert "there are 4 (2 more lack a score)." in verdicts({"a": comparison})["a"].reason


@pytest.mark.parametrize("pairs", [0, 1, 2, 4])
def test_a_comparison_with_too_few_pairs_still_counts_in_the_correction(pairs: int) -> None:
    few = differing_by(*[0.5] * pairs)  # equal differences: p = 0 from 2 pairs on, which must not help the other
    close = differing_by(*CLOSE_CALL)
    assert verdicts({"few": few, "close": close})["close"].adjusted_p_value == same(2 * (close.p_value or NAN))


def test_where_holm_rejects_at_a_wider_level_the_95_percent_interval_must_still_exclude_0() -> None:
    weak = differing_by(0.010, 0.020, -0.002, 0.012, 0.000)  # mean 0.008, standard error 0.00405: t = 1.98, p = 0.12
    assert weak.p_value is not None and 0.05 < weak.p_value < 0.2
    verdict = verdicts({"a": weak}, alpha=0.2)["a"]
    assert verdict.outcome == "no evidence" and "holds 0" in verdict.reason


def test_reasons_are_sentences_with_their_numbers() -> None:
    told = verdicts({"clear": differing_by(*CLEAR), "nothing": differing_by(*NOTHING)})
    assert told["clear"].reason == (
        "p = 0.0002 after Holm's correction over 2 comparisons, and the 95 % interval of the mean difference, "
        "+0.00904 to +0.013, excludes 0."
    )
    assert told["nothing"].reason == "p = 1 after Holm's correction over 2 comparisons, above 0.05."


def test_no_comparison_gives_no_verdict() -> None:
    assert verdicts({}) == {}


@pytest.mark.parametrize("alpha", [0.0, 1.0, NAN])
def test_alpha_must_lie_between_0_and_1(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be a number between 0 and 1"):
        verdicts({}, alpha)


# -- power ------------------------------------------------------------------------------------------------------------


def test_a_medium_effect_needs_34_pairs() -> None:
    # power.t.test(delta = 0.5, sd = 1, power = 0.8, type = "paired") of R: n = 33.36713
    assert paired_power(33, 0.5, 0.05) < 0.8 < paired_power(34, 0.5, 0.05)


@pytest.mark.parametrize(("n", "effect", "level"), [(5, 2.0, 0.01), (10, 1.5, 0.05), (30, 0.4, 0.005)])
def test_power_is_the_mean_of_the_normal_tail_over_the_spread_of_the_sd(n: int, effect: float, level: float) -> None:
    # T > c where Z + effect √n > c √(V / df), Z normal and V chi-squared
    df, critical = n - 1, stats.t.isf(level / 2, n - 1)
    tail = integrate.quad(
        lambda v: special.ndtr(effect * math.sqrt(n) - critical * math.sqrt(v / df)) * stats.chi2.pdf(v, df), 0, 30 * n
    )[0]
    assert paired_power(n, effect, level) == pytest.approx(tail, abs=PRINTED[torch.float64])


def test_power_without_effect_is_the_level_of_one_side() -> None:
    assert paired_power(10, 0.0, 0.05) == same(0.025)


@pytest.mark.parametrize(("n", "comparisons", "power"), [(5, 5, 0.8), (10, 1, 0.8), (10, 12, 0.9), (100, 3, 0.5)])
def test_the_detectable_difference_is_found_with_the_power_asked_for(n: int, comparisons: int, power: float) -> None:
    found = detectable_difference(n, 1.0, comparisons, alpha=0.05, power=power)
    assert found is not None
    assert paired_power(n, found, 0.05 / comparisons) == same(power)


def test_the_detectable_difference_has_the_unit_of_the_sd() -> None:
    assert detectable_difference(10, 2.0, 5) == same(2 * (detectable_difference(10, 1.0, 5) or NAN))
    assert detectable_difference(10, 0.0, 5) == 0.0


def test_more_comparisons_and_fewer_seeds_hide_larger_differences() -> None:
    found = [detectable_difference(n, 1.0, m) or NAN for n, m in [(20, 1), (10, 1), (10, 5), (5, 5), (5, 50)]]
    assert found == sorted(found) and len(set(found)) == 5


def test_below_5_seeds_no_difference_is_detectable() -> None:
    assert detectable_difference(4, 0.02, 1) is None and detectable_difference(0, 0.02, 1) is None


def test_a_power_below_the_level_needs_no_difference() -> None:
    assert detectable_difference(10, 1.0, 1, alpha=0.5, power=0.2) == 0.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"sd": -1.0}, "sd must be"),
        ({"sd": NAN}, "sd must be"),
        ({"comparisons": 0}, "comparisons must be"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"power": 1.0}, "power must be"),
    ],
)
def test_a_detectable_difference_names_the_argument_that_is_wrong(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        detectable_difference(**{"n": 10, "sd": 1.0, "comparisons": 5, **arguments})


@pytest.mark.parametrize(
    ("n", "effect", "level", "named"), [(1, 1.0, 0.05, "n"), (5, -1.0, 0.05, "effect_size"), (5, 1.0, 0.0, "level")]
)
def test_power_names_the_argument_that_is_wrong(n: int, effect: float, level: float, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must be"):
        paired_power(n, effect, level)


# -- data that cannot decide ------------------------------------------------------------------------------------------

LABELS = [0] * 6 + [1] * 3 + [2] * 1


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("accuracy", lambda truth, guess: accuracy_score(truth, guess)),
        ("macro_f1", lambda truth, guess: f1_score(truth, guess, average="macro", zero_division=0.0)),
        ("matthews", matthews_corrcoef),
    ],
)
def test_chance_is_the_score_of_the_majority_class(metric: str, score: Any) -> None:
    assert chance_level(metric, Counter(LABELS)) == same(float(score(LABELS, [0] * 10)))


def test_chance_by_hand() -> None:
    counts = {"no": 6, "yes": 3, "maybe": 1}
    assert chance_level("accuracy", counts) == same(0.6)
    assert chance_level("macro_f1", counts) == same((2 * 0.6 * 1 / (0.6 + 1) + 0 + 0) / 3)  # precision 0.6, recall 1


def test_chance_of_a_correlation_is_0_whatever_the_labels() -> None:
    assert chance_level("pearson_spearman") == chance_level("matthews", {"a": 3}) == 0.0


def test_a_class_without_rows_does_not_count() -> None:
    assert chance_level("macro_f1", {"a": 2, "b": 2, "c": 0}) == chance_level("macro_f1", {"a": 2, "b": 2})


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match="got 'bleu'"):
        chance_level("bleu", {"a": 1})


@pytest.mark.parametrize("counts", [None, {}, {"a": 0}])
def test_chance_of_a_share_needs_labels(counts: dict[str, int] | None) -> None:
    with pytest.raises(ValueError, match="label_counts must hold at least one label for accuracy"):
        chance_level("accuracy", counts)


# four scores with standard error 0.01: deviations ±a, ±a with sd √(4a² / 3) = 0.02
STEP = 0.02 * math.sqrt(3) / 2


def around(mean: float) -> list[float]:
    return [mean - STEP, mean + STEP, mean - STEP, mean + STEP]


@pytest.mark.parametrize(
    ("mean", "near"), [(0.519, "chance"), (0.481, "chance"), (0.521, None), (0.979, None), (0.981, "the ceiling")]
)
def test_data_cannot_decide_within_two_standard_errors_of_a_bound(mean: float, near: str | None) -> None:
    sentence = cannot_decide(around(mean), chance=0.5)
    assert (sentence is None) if near is None else (sentence is not None and f" of {near}, " in sentence)


def test_the_sentence_has_its_numbers() -> None:
    assert cannot_decide(around(0.51), chance=0.5) == (
        "These data cannot decide: the baseline's mean of 0.51 is within 2 standard errors (0.01 each) of chance, 0.5."
    )


def test_runs_that_all_predict_the_majority_cannot_decide() -> None:
    baseline, chance = np.full(10, 2 / 3), chance_level("accuracy", {"a": 4, "b": 2})
    assert abs(baseline.mean() - chance) > 2 * baseline.std(ddof=1) / math.sqrt(10)  # by rounding alone
    assert cannot_decide(baseline, chance) is not None


def test_equal_scores_away_from_the_bounds_can_decide() -> None:
    assert cannot_decide([0.7] * 10, chance=0.5) is None


def test_the_ceiling_is_given_in_the_unit_of_the_scores() -> None:
    assert cannot_decide([99.0, 100.0, 100.0], chance=50.0, ceiling=100.0) is not None


def test_the_ceiling_counts_where_chance_is_not_known() -> None:
    assert cannot_decide(around(0.51), chance=None) is None
    assert "the ceiling" in str(cannot_decide(around(0.981), chance=None))


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, NAN]])
def test_below_two_seeds_nothing_is_said_about_the_data(scores: list[float]) -> None:
    assert cannot_decide(scores, chance=0.5) is None


# -- what the control earned ------------------------------------------------------------------------------------------


def test_a_gain_is_parted_into_the_control_and_the_method() -> None:
    gain = split_gain([0.5, 0.5, 0.5], [0.625, 0.5, 0.75], [0.75, 0.75, 0.75])
    assert gain.by_control.differences == (0.125, 0.0, 0.25)
    assert gain.by_method.differences == (0.125, 0.25, 0.0)
    assert gain.total.differences == (0.25, 0.25, 0.25)


def test_the_parts_add_up_because_only_seeds_with_all_three_scores_count() -> None:
    gain = split_gain({0: 0.5, 1: 0.6, 2: 0.4}, {0: 0.6, 1: NAN, 2: 0.3}, {0: 0.9, 1: 0.7, 2: 0.5, 3: 0.8})
    assert {(part.seeds, part.dropped) for part in (gain.by_control, gain.by_method, gain.total)} == {((0, 2), (1, 3))}
    assert (gain.by_control.mean or 0) + (gain.by_method.mean or 0) == same(gain.total.mean)
