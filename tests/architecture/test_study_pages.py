"""Pages about studies show what the committed records say."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from steadytune.reports.statistics import PairedComparison, mean_and_sd, paired_comparison, verdicts

ROOT = Path(__file__).parents[2]
STUDY, PAGE = ROOT / "benchmarks/results/hype_combinations", ROOT / "docs/explanation/hype-combinations.md"
METRICS = {"mrpc": "accuracy", "stsb": "pearson_spearman"}
PARTS = ("rdrop", "r3f", "child_tuning", "noisytune")
CONTROLS = {"plain": "baseline", "hype-control": "control"}

Scores = Mapping[str, Mapping[int, float]]


def scores_of(task: str) -> Scores:
    """Test scores in points by recipe and seed."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((STUDY / "records").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        place = record["cell"]
        assert record["status"] == "done"
        if place["task"] == task:
            found.setdefault(place["recipe"], {})[place["seed"]] = 100 * record["scores"]["test"][METRICS[task]]
    return found


def shown(found: PairedComparison) -> str:
    assert found.mean is not None and found.interval is not None
    text = f"{found.mean:+.1f} ({found.interval.low:+.1f} to {found.interval.high:+.1f})"
    return text.replace("-", "−")


def row(scores: Scores, recipe: str) -> str:
    """The line of the page about one recipe."""
    judged = {name: paired_comparison(scores["plain"], scores[name]) for name in scores if name not in CONTROLS}
    verdict = verdicts(judged).get(recipe)
    mean, sd = mean_and_sd(scores[recipe])
    cells = [recipe, f"{mean:.1f} ± {sd:.1f}"]
    cells.append("–" if recipe == "plain" else shown(paired_comparison(scores["plain"], scores[recipe])))
    cells.append("–" if verdict is None else f"{verdict.adjusted_p_value:.3f}")
    cells.append(CONTROLS[recipe] if verdict is None else verdict.outcome)
    cells.append("–" if recipe == "hype-control" else shown(paired_comparison(scores["hype-control"], scores[recipe])))
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("task", METRICS)
def test_the_combination_study_is_whole(task: str) -> None:
    assert {frozenset(by_seed) for by_seed in scores_of(task).values()} == {frozenset(range(5))}
    assert len(scores_of(task)) == 3 + 2 * len(PARTS)


@pytest.mark.parametrize("task", METRICS)
def test_the_page_of_the_combination_study_shows_its_records(task: str) -> None:
    scores, page = scores_of(task), PAGE.read_text(encoding="utf-8")
    assert [name for name in scores if row(scores, name) not in page] == []


def test_the_page_shows_what_hype_adds_to_each_method() -> None:
    found = {task: scores_of(task) for task in METRICS}
    page = PAGE.read_text(encoding="utf-8")
    for part in PARTS:
        cells = [shown(paired_comparison(found[task][part], found[task][f"hype+{part}"])) for task in METRICS]
        assert f"| {part} | {' | '.join(cells)} |" in page
