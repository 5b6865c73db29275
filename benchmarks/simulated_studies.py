"""How often the verdict errs where no recipe differs, and how often it finds a true difference; both by simulation.

    OMP_NUM_THREADS=1 python benchmarks/simulated_studies.py --output benchmarks/results

A study compares recipes with one baseline over the same seeds. A score is the sum of a part that all recipes share with
their seed and a part of the run alone. Every verdict comes from `paired_comparison` and `verdicts`, as in a report.
The bounds hold for runs that spread normally; the other two kinds of runs show what less tame scores do.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from steadytune.reports.statistics import Verdict, detectable_difference, paired_comparison, paired_power, verdicts

Runs = Literal["normal", "counted", "collapsing"]

ALPHA = 0.05
SEED_SD = 0.02  # of the part that recipes share
RUN_SD = 0.01  # of the rest
DIFFERENCE_SD = RUN_SD * math.sqrt(2)
TEST_ROWS = 100  # a "counted" score is an accuracy over so many rows
COLLAPSE, COLLAPSED = 0.1, 0.3  # share of "collapsing" runs that fail to learn, and what they lose
FAMILY_WISE_BOUND, POWER_BOUND = 0.064, 0.85
MEANING = {
    "normal": "the part of the run is normal",
    "counted": f"the same, as an accuracy over {TEST_ROWS} rows",
    "collapsing": f"one run in {1 / COLLAPSE:.0f} loses {COLLAPSED}",
}


@dataclass(frozen=True)
class Share:
    """How many of the studies did something, with the 95 % Clopper–Pearson interval and a bound, if there is one."""

    runs: str
    seeds: int
    comparisons: int
    effect_in_sd: float
    share: float
    low: float
    high: float
    bound: float | None
    expected: float | None = None


def scores(random: np.random.Generator, recipes: int, seeds: int, runs: Runs) -> np.ndarray:
    """(recipes, seeds), all recipes alike."""
    shared = random.normal(0.8, SEED_SD, size=(1, seeds))
    made = shared + random.normal(0.0, RUN_SD, size=(recipes, seeds))
    if runs == "counted":
        return np.round(made * TEST_ROWS) / TEST_ROWS
    if runs == "collapsing":
        return made - COLLAPSED * (random.random(made.shape) < COLLAPSE)
    return made


def study(random: np.random.Generator, comparisons: int, seeds: int, runs: Runs, effect_in_sd: float) -> list[Verdict]:
    """Verdicts of one study; only the first recipe differs from the baseline, by the effect."""
    baseline, *others = scores(random, 1 + comparisons, seeds, runs)
    others[0] = others[0] + effect_in_sd * DIFFERENCE_SD
    compared = {str(index): paired_comparison(baseline, other) for index, other in enumerate(others)}
    return list(verdicts(compared, ALPHA).values())


def family_wise_error(studies: int, comparisons: int, seeds: int, runs: Runs) -> Share:
    """Share of studies without any difference in which some verdict is better or worse."""
    random = np.random.default_rng([seeds, comparisons, list(MEANING).index(runs)])
    false = sum(
        any(verdict.outcome != "no evidence" for verdict in study(random, comparisons, seeds, runs, 0.0))
        for _ in range(studies)
    )
    low, high = binomtest(false, studies).proportion_ci()
    bound = FAMILY_WISE_BOUND if runs == "normal" else None
    return Share(runs, seeds, comparisons, 0.0, false / studies, float(low), float(high), bound)


def power(studies: int, comparisons: int, seeds: int, effect_in_sd: float, bound: float | None) -> Share:
    """Share of studies in which the one recipe that is better is found better, beside its t-test at α / comparisons."""
    random = np.random.default_rng([seeds, comparisons, round(1000 * effect_in_sd)])
    found = sum(
        study(random, comparisons, seeds, "normal", effect_in_sd)[0].outcome == "better" for _ in range(studies)
    )
    low, high = binomtest(found, studies).proportion_ci()
    expected = paired_power(seeds, effect_in_sd, ALPHA / comparisons)
    return Share("normal", seeds, comparisons, effect_in_sd, found / studies, float(low), float(high), bound, expected)


def simulate(null_studies: int, power_studies: int) -> dict[str, Any]:
    """Both tables."""
    errors = [
        family_wise_error(null_studies, 5, seeds, runs)
        for runs in ("normal", "counted", "collapsing")
        for seeds in (5, 10)
    ]
    powers = [
        power(power_studies, comparisons, seeds, 1.5, POWER_BOUND if seeds == 10 else None)
        for seeds in (10, 5)
        for comparisons in (1, 5)
    ]
    for seeds in (10, 5):
        detectable = detectable_difference(seeds, 1.0, 5)
        assert detectable is not None
        powers.append(power(power_studies, 5, seeds, detectable, 0.8 - 3 * math.sqrt(0.8 * 0.2 / power_studies)))
    return {
        "setting": {
            "null_studies": null_studies,
            "power_studies": power_studies,
            "alpha": ALPHA,
            "seed_sd": SEED_SD,
            "run_sd": RUN_SD,
            "runs": MEANING,
        },
        "family_wise_error": [asdict(row) for row in errors],
        "power": [asdict(row) for row in powers],
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "scipy": version("scipy")},
    }


def missed(measured: dict[str, Any]) -> list[str]:
    """The bounds that do not hold, one sentence each."""
    high = [row for row in measured["family_wise_error"] if row["bound"] is not None and row["share"] > row["bound"]]
    low = [row for row in measured["power"] if row["bound"] is not None and row["share"] < row["bound"]]
    return [
        *(f"family-wise error {row['share']:.3f} at {row['seeds']} seeds, bound {row['bound']:.3f}." for row in high),
        *(f"power {row['share']:.3f} at {row['seeds']} seeds, bound {row['bound']:.3f}." for row in low),
    ]


def as_tables(measured: dict[str, Any]) -> str:
    """The results as Markdown."""
    setting, versions = measured["setting"], measured["versions"]
    error = math.sqrt(ALPHA * (1 - ALPHA) / setting["null_studies"])
    lines = [
        "# Simulated studies",
        "",
        "`OMP_NUM_THREADS=1 python benchmarks/simulated_studies.py --output benchmarks/results`; "
        f"numpy {versions['numpy']}, scipy {versions['scipy']}. Recipes are compared with one baseline over the same "
        f"seeds: paired t-test, two-sided, α {ALPHA}, Holm over the comparisons. Sd of the part of a score that all "
        f"recipes share with their seed {SEED_SD}, of the part of the run alone {RUN_SD}. Runs are "
        f"{'; '.join(f'{kind}: {text}' for kind, text in MEANING.items())}.",
        "",
        "## A verdict where no recipe differs",
        "",
        f"Share of {setting['null_studies']} studies with any *better* or *worse*, and its 95 % Clopper–Pearson "
        f"interval. The nominal value is {ALPHA}, its Monte-Carlo standard error {error:.4f}.",
        "",
        "| runs | seeds | comparisons | family-wise error | interval | bound |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured["family_wise_error"]:
        bound = "none" if row["bound"] is None else f"≤ {row['bound']:.3f}"
        lines.append(
            f"| {row['runs']} | {row['seeds']} | {row['comparisons']} | {row['share']:.4f} "
            f"| {row['low']:.4f} to {row['high']:.4f} | {bound} |"
        )
    lines += [
        "",
        "## A true difference is found",
        "",
        f"Share of {setting['power_studies']} studies in which the one better recipe is found *better*, and its 95 % "
        "interval. The effect is in sd of the paired differences. Beside it the power of one t-test at α / comparisons "
        "by the noncentral t, below which Holm does not fall. The last two effects are the smallest detectable ones at "
        "power 0.8; their bound is 0.8 less 3 Monte-Carlo standard errors.",
        "",
        "| effect | seeds | comparisons | power | interval | noncentral t | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in measured["power"]:
        bound = "none" if row["bound"] is None else f"≥ {row['bound']:.3f}"
        lines.append(
            f"| {row['effect_in_sd']:.2f} | {row['seeds']} | {row['comparisons']} | {row['share']:.3f} "
            f"| {row['low']:.3f} to {row['high']:.3f} | {row['expected']:.3f} | {bound} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, write `simulated_studies.json` and `simulated_studies.md`, and fail if a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--null-studies", type=int, default=2000)
    parser.add_argument("--power-studies", type=int, default=1000)
    options = parser.parse_args(arguments)
    measured = simulate(options.null_studies, options.power_studies)
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measured, indent=1, ensure_ascii=False) + "\n"
    (options.output / "simulated_studies.json").write_text(text, encoding="utf-8")
    (options.output / "simulated_studies.md").write_text(as_tables(measured), encoding="utf-8")
    print(as_tables(measured))
    if failures := missed(measured):
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
