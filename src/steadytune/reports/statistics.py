"""Statistics of scores per seed: comparison, verdict, power.

A score is higher when better and has any unit; differences are in that unit. A seed without a finite score (NaN, None,
missing) is left out by name, never filled in. A quantity that its data do not determine is None.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, stats

Scores = Mapping[int, float | None] | Sequence[float | None] | np.ndarray
"""Score by seed, or a sequence in which a position is a seed."""

Outcome = Literal["better", "worse", "no evidence"]

CONFIDENCE = 0.95  # of every interval
MINIMUM_PAIRS = 5  # for a verdict
MINIMUM_PERMUTATION_PAIRS = 8  # below it the smallest two-sided p, 2 / 2^n, is above 0.01
PERMUTATIONS = 100_000  # up to 16 pairs have fewer sign patterns, and all are counted
BOOTSTRAP_RESAMPLES = 10_000
ROUNDING = 1e-12  # relative to the scores: what lies closer differs by rounding alone


class Interval(NamedTuple):
    """A closed interval."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside.

        Args:
            value: in the unit of the bounds.
        """
        return not self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """What the seeds say about the other recipe minus the baseline.

    Attributes:
        seeds: with a finite score on both sides, ascending; one pair each.
        dropped: the remaining seeds.
        differences: other − baseline, by seed.
        mean: of the differences; None without a pair.
        sd: of the differences, with n − 1; None below two pairs, as all that follows.
        interval: 95 % t interval of the mean.
        p_value: of the paired t-test, two-sided.
        effect_size: d_z = mean / sd; None also where sd is 0.
        resampling_seed: of the bootstrap and the permutations, which are computed when first asked for.
    """

    seeds: tuple[int, ...]
    dropped: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float | None
    sd: float | None
    interval: Interval | None
    p_value: float | None
    effect_size: float | None
    resampling_seed: int = 0

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.seeds)

    @cached_property
    def bootstrap_interval(self) -> Interval | None:
        """95 % percentile interval of the mean difference; too narrow with few pairs, hence never part of a verdict."""
        return bootstrap_interval(self.differences, self.resampling_seed)

    @cached_property
    def permutation_p_value(self) -> float | None:
        """Two-sided p of the mean under flips of sign: exact up to 16 pairs, then from 100,000 seeded flips.

        None below 8 pairs.
        """
        if self.n < MINIMUM_PERMUTATION_PAIRS:
            return None
        size = max(abs(difference) for difference in self.differences) or 1.0
        result = stats.permutation_test(
            (np.sort(self.differences) / size,),
            _rounded_mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            rng=np.random.default_rng(self.resampling_seed),
        )
        return float(result.pvalue)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on one comparison.

    Attributes:
        outcome: "better", "worse" or "no evidence".
        reason: one sentence.
        adjusted_p_value: after Holm's correction; None where there are too few pairs.
    """

    outcome: Outcome
    reason: str
    adjusted_p_value: float | None


@dataclass(frozen=True, kw_only=True)
class SplitGain:
    """A method's gain over plain fine-tuning in two parts, over the seeds that all three finished.

    Attributes:
        by_control: control − plain, what comes without the method's idea.
        by_method: method − control, what the idea adds.
        total: method − plain; its mean is the sum of theirs.
    """

    by_control: PairedComparison
    by_method: PairedComparison
    total: PairedComparison


def mean_and_sd(values: Scores) -> tuple[float | None, float | None]:
    """Mean and standard deviation (with n − 1) of the finite values.

    Args:
        values: scores per seed.
    Returns:
        Mean, None without a value; standard deviation, None below two.
    """
    _, _, (finite,) = _complete(values)
    if len(finite) == 0:
        return None, None
    return float(finite.mean()), float(finite.std(ddof=1)) if len(finite) > 1 else None


def bootstrap_interval(values: Scores, seed: int = 0) -> Interval | None:
    """95 % percentile bootstrap interval of the mean of the finite values, from 10,000 resamples.

    Args:
        values: scores or differences; their order does not matter.
        seed: of the resampling; the same seed gives the same interval.
    Returns:
        None below two values.

    Source: Efron and Tibshirani 1993, §13.3.
    """
    _, _, (finite,) = _complete(values)
    if len(finite) < 2:
        return None
    result = stats.bootstrap(
        (np.sort(finite),),
        np.mean,
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_comparison(baseline: Scores, other: Scores, *, seed: int = 0) -> PairedComparison:
    """Compare two recipes over the seeds that both finished.

    Differences that agree up to rounding have sd 0 and an interval of width 0; then p is 1 if they are 0, else 0, the
    limit of the t-test, though what it says is only that the spread was too small to be seen.

    Args:
        baseline: scores by seed.
        other: scores by seed, of the same kind as `baseline`.
        seed: of the bootstrap and the permutations.
    Returns:
        Statistics of other − baseline.
    Raises:
        ValueError: one is a mapping and the other a sequence, or the sequences differ in length.

    Source: Student 1908 for the test; Cohen 1988, §2.3.5, for d_z.
    """
    seeds, dropped, (first, second) = _complete(baseline, other)
    return _compare(seeds, dropped, first, second, seed)


def split_gain(plain: Scores, control: Scores, method: Scores, *, seed: int = 0) -> SplitGain:
    """Part a method's gain into what its control earned and what the method added to that.

    Args:
        plain: scores of plain fine-tuning, by seed.
        control: scores of the control that isolates the method.
        method: scores of the method.
        seed: of the bootstrap and the permutations.
    Returns:
        Three comparisons over the same seeds, so that the parts add up.
    Raises:
        ValueError: as in `paired_comparison`.
    """
    seeds, dropped, (a, b, c) = _complete(plain, control, method)
    return SplitGain(
        by_control=_compare(seeds, dropped, a, b, seed),
        by_method=_compare(seeds, dropped, b, c, seed),
        total=_compare(seeds, dropped, a, c, seed),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those ≤ α keeps the chance of any false rejection ≤ α, however they depend.

    Args:
        p_values: of all hypotheses of the family.
    Returns:
        In the same order, each at least the unadjusted one and at most 1.
    Raises:
        ValueError: a p-value outside of 0 to 1.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must lie between 0 and 1; got {list(p_values)}.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def verdicts(comparisons: Mapping[str, PairedComparison], alpha: float = 0.05) -> dict[str, Verdict]:
    """Decide on each comparison with one baseline, with Holm's correction over all of them.

    "better" or "worse" only if Holm rejects and the 95 % t interval excludes 0. Below 5 pairs always "no evidence";
    such a comparison still counts in the correction, as if its p were 1.

    Args:
        comparisons: all recipes that were compared with the baseline, controls left out.
        alpha: chance that any of the verdicts is "better" or "worse" where no recipe differs.
    Returns:
        By the same names.
    Raises:
        ValueError: `alpha` is not between 0 and 1.
    """
    _check_share("alpha", alpha)
    adjusted = holm([_p_in_family(comparison) for comparison in comparisons.values()])
    return {
        name: _verdict(comparison, p, len(comparisons), alpha)
        for (name, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }


def paired_power(n: int, effect_size: float, level: float) -> float:
    """Chance that a two-sided paired t-test finds a true positive difference, and with the right sign.

    Args:
        n: pairs, at least 2.
        effect_size: true mean difference over the true sd of the differences, d_z ≥ 0.
        level: of the test.
    Returns:
        Between `level` / 2 and 1.
    Raises:
        ValueError: an argument out of its range.

    Source: Cohen 1988, §2.3.5; noncentral t with n − 1 degrees of freedom.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2; got {n}.")
    if not effect_size >= 0:
        raise ValueError(f"effect_size must be a number ≥ 0; got {effect_size}.")
    _check_share("level", level)
    critical = stats.t.isf(level / 2, n - 1)
    return float(stats.nct.sf(critical, n - 1, effect_size * math.sqrt(n)))


def detectable_difference(n: int, sd: float, comparisons: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest true mean difference that n seeds find, tested at Holm's strictest level, alpha / comparisons.

    Args:
        n: seeds per recipe.
        sd: of the paired differences.
        comparisons: recipes beside the baseline.
        alpha: of the whole family.
        power: chance of finding it.
    Returns:
        In the unit of `sd`; None below 5 seeds, where there is no verdict whatever the difference.
    Raises:
        ValueError: an argument out of its range.
    """
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"sd must be a finite number ≥ 0; got {sd}.")
    if comparisons < 1:
        raise ValueError(f"comparisons must be at least 1; got {comparisons}.")
    _check_share("alpha", alpha)
    _check_share("power", power)
    if n < MINIMUM_PAIRS:
        return None
    level = alpha / comparisons
    if paired_power(n, 0.0, level) >= power:
        return 0.0
    upper = 1.0
    while paired_power(n, upper, level) < power:
        upper *= 2
    found = optimize.brentq(lambda effect_size: paired_power(n, effect_size, level) - power, 0.0, upper)
    return float(found) * sd


def chance_level(metric: str, label_counts: Mapping[Hashable, int] | None = None) -> float:
    """Score of a prediction that knows only how frequent the labels are.

    Args:
        metric: "accuracy" (share of the majority class), "macro_f1" (always predicting the majority class; mean over
            the classes that occur), "matthews" or "pearson_spearman" (0).
        label_counts: rows per label in the scored split; only the first two metrics need it.
    Returns:
        In the unit of the metric.
    Raises:
        ValueError: an unknown metric, or no counted label where one is needed.
    """
    if metric in ("matthews", "pearson_spearman"):
        return 0.0
    if metric not in ("accuracy", "macro_f1"):
        raise ValueError(f"metric must be accuracy, macro_f1, matthews or pearson_spearman; got {metric!r}.")
    counts = [count for count in (label_counts or {}).values() if count > 0]
    if not counts:
        raise ValueError(f"label_counts must hold at least one label for {metric}; got {label_counts}.")
    share = max(counts) / sum(counts)
    return share if metric == "accuracy" else 2 * share / (1 + share) / len(counts)


def cannot_decide(baseline: Scores, chance: float | None, ceiling: float = 1.0) -> str | None:
    """Say so where the baseline leaves no room for a difference to be seen.

    Args:
        baseline: scores by seed.
        chance: score without learning; see `chance_level`. None where it is not known.
        ceiling: the best possible score.
    Returns:
        One sentence if the mean lies within 2 standard errors of `chance` or `ceiling`; else None, as below two seeds.
    """
    _, _, (finite,) = _complete(baseline)
    if len(finite) < 2:
        return None
    mean, error = float(finite.mean()), float(finite.std(ddof=1)) / math.sqrt(len(finite))
    for name, bound in (("chance", chance), ("the ceiling", ceiling)):
        if bound is not None and abs(mean - bound) <= 2 * error + ROUNDING * max(abs(mean), abs(bound)):
            return (
                f"These data cannot decide: the baseline's mean of {mean:.4g} is within 2 standard errors "
                f"({error:.2g} each) of {name}, {bound:.4g}."
            )
    return None


def _complete(*scores: Scores) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray]:
    """Seeds with a finite score everywhere, the other seeds, and the scores of the former, one row per argument."""
    if any(isinstance(one, Mapping) for one in scores) and not all(isinstance(one, Mapping) for one in scores):
        raise ValueError("scores to pair must all be mappings from seed to score, or all sequences; got both.")
    by_seed = [dict(one) if isinstance(one, Mapping) else dict(enumerate(one)) for one in scores]
    if not isinstance(scores[0], Mapping) and len({len(one) for one in by_seed}) > 1:
        raise ValueError(f"sequences to pair must have the same length; got {[len(one) for one in by_seed]}.")
    seeds = sorted(set().union(*by_seed))
    values = [[np.nan if (value := one.get(seed)) is None else value for seed in seeds] for one in by_seed]
    table = np.array(values, dtype=np.float64)
    complete = [bool(np.isfinite(column).all()) for column in table.T]
    return (
        tuple(seed for seed, keep in zip(seeds, complete, strict=True) if keep),
        tuple(seed for seed, keep in zip(seeds, complete, strict=True) if not keep),
        table[:, complete],
    )


def _rounded_mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.round(values.mean(axis=axis), 9))  # equal sums of steps of a score tie despite rounding


def _compare(
    seeds: tuple[int, ...], dropped: tuple[int, ...], first: np.ndarray, second: np.ndarray, seed: int
) -> PairedComparison:
    differences = second - first
    mean = float(differences.mean()) if seeds else None
    sd, interval, p_value, effect_size = None, None, None, None
    if mean is not None and len(seeds) > 1:
        rounding = ROUNDING * max(float(np.abs(first).max()), float(np.abs(second).max()))
        if float(np.ptp(differences)) <= rounding:
            mean = 0.0 if abs(mean) <= rounding else mean
            differences = np.full_like(differences, mean)
            sd, interval, p_value = 0.0, Interval(mean, mean), 1.0 if mean == 0 else 0.0
        else:
            test = stats.ttest_rel(second, first)
            bounds = test.confidence_interval(CONFIDENCE)
            interval, p_value = Interval(float(bounds.low), float(bounds.high)), float(test.pvalue)
            sd = float(differences.std(ddof=1))
            effect_size = mean / sd
    return PairedComparison(
        seeds=seeds,
        dropped=dropped,
        differences=tuple(float(difference) for difference in differences),
        mean=mean,
        sd=sd,
        interval=interval,
        p_value=p_value,
        effect_size=effect_size,
        resampling_seed=seed,
    )


def _p_in_family(comparison: PairedComparison) -> float:
    if comparison.n < MINIMUM_PAIRS or comparison.p_value is None:
        return 1.0
    return comparison.p_value


def _verdict(comparison: PairedComparison, adjusted: float, family: int, alpha: float) -> Verdict:
    mean, interval = comparison.mean, comparison.interval
    if comparison.n < MINIMUM_PAIRS or mean is None or interval is None:
        lost = f" ({len(comparison.dropped)} more lack a score)" if comparison.dropped else ""
        few = f"A verdict needs at least {MINIMUM_PAIRS} seeds with both scores; there are {comparison.n}{lost}."
        return Verdict(outcome="no evidence", reason=few, adjusted_p_value=None)
    p = "p < 0.0001" if adjusted < 1e-4 else f"p = {adjusted:.2g}"
    after = f"{p} after Holm's correction over {family} comparison{'s' if family > 1 else ''}"
    span = f"the 95 % interval of the mean difference, {interval.low:+.3g} to {interval.high:+.3g},"
    if adjusted > alpha:
        return Verdict(outcome="no evidence", reason=f"{after}, above {alpha:g}.", adjusted_p_value=adjusted)
    if not interval.excludes(0.0):
        return Verdict(outcome="no evidence", reason=f"{after}, but {span} holds 0.", adjusted_p_value=adjusted)
    outcome: Outcome = "better" if mean > 0 else "worse"
    return Verdict(outcome=outcome, reason=f"{after}, and {span} excludes 0.", adjusted_p_value=adjusted)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be a number between 0 and 1; got {value}.")
