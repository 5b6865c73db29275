"""Pages about studies show what the committed records say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from steadytune.reports.statistics import PairedComparison, mean_and_sd, paired_comparison, verdicts

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs/explanation"
HYPE_PARTS = ("rdrop", "r3f", "child_tuning", "noisytune")
PRETRAINED = ("plain", "plain-equal-time", "consistency", "asa-control-random", "asa")

Scores = Mapping[str, Mapping[int, float]]


def record(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def scores_of(study: str, task: str) -> Scores:
    """Test scores in points by recipe and seed."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((RESULTS / study / "records").glob("*.json")):
        run = record(path)
        assert run["status"] == "done"
        if run["cell"]["task"] == task:
            score = 100 * run["scores"]["test"][run["metric"]]
            found.setdefault(run["cell"]["recipe"], {})[run["cell"]["seed"]] = score
    return found


def shown(found: PairedComparison) -> str:
    assert found.mean is not None and found.interval is not None
    text = f"{found.mean:+.1f} ({found.interval.low:+.1f} to {found.interval.high:+.1f})"
    return text.replace("-", "−")


def row(scores: Scores, recipe: str, baseline: str, control: str) -> str:
    """The line of a page about one recipe."""
    roles = {baseline: "baseline", control: "control"}
    judged = {name: paired_comparison(scores[baseline], scores[name]) for name in scores if name not in roles}
    verdict = verdicts(judged).get(recipe)
    mean, sd = mean_and_sd(scores[recipe])
    cells = [recipe, f"{mean:.1f} ± {sd:.1f}"]
    cells.append("–" if recipe == baseline else shown(paired_comparison(scores[baseline], scores[recipe])))
    cells.append("–" if verdict is None else f"{verdict.adjusted_p_value:.3f}")
    cells.append(roles[recipe] if verdict is None else verdict.outcome)
    cells.append("–" if recipe == control else shown(paired_comparison(scores[control], scores[recipe])))
    return f"| {' | '.join(cells)} |"


STUDIES = [
    ("hype_combinations", "mrpc", "hype-combinations.md", "plain", "hype-control", 11),
    ("hype_combinations", "stsb", "hype-combinations.md", "plain", "hype-control", 11),
    ("pretrained_encoders", "trec", "asa-pretraining.md", "after plain-equal-time", "after asa-control-random", 5),
    ("pretrained_encoders", "mr", "asa-pretraining.md", "after plain-equal-time", "after asa-control-random", 5),
]


@pytest.mark.parametrize(("study", "task", "page", "baseline", "control", "recipes"), STUDIES)
def test_a_page_shows_every_recipe_of_its_study_with_five_seeds(
    study: str, task: str, page: str, baseline: str, control: str, recipes: int
) -> None:
    scores, text = scores_of(study, task), (DOCS / page).read_text(encoding="utf-8")
    assert {frozenset(by_seed) for by_seed in scores.values()} == {frozenset(range(5))} and len(scores) == recipes
    assert [name for name in scores if row(scores, name, baseline, control) not in text] == []


def test_the_page_shows_what_hype_adds_to_each_method() -> None:
    found = [scores_of("hype_combinations", task) for task in ("mrpc", "stsb")]
    page = (DOCS / "hype-combinations.md").read_text(encoding="utf-8")
    for part in HYPE_PARTS:
        cells = [shown(paired_comparison(scores[part], scores[f"hype+{part}"])) for scores in found]
        assert f"| {part} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("recipe", PRETRAINED)
def test_the_page_of_pretraining_shows_its_records(recipe: str) -> None:
    run = record(RESULTS / "pretrain_novels" / recipe / "record.json")
    cost, end = run["cost"], run["curve"][-1]
    cells = [recipe, cost["optimizer_steps"], f"{cost['train_seconds']:.0f}", f"{cost['forward_passes']:.0f}"]
    cells += [f"{end['loss']:.3f}", f"{100 * end['accuracy']:.1f}"]
    assert f"| {' | '.join(map(str, cells))} |" in (DOCS / "asa-pretraining.md").read_text(encoding="utf-8")
