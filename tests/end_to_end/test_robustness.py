"""`evaluate --also`, and robustness sets in `compare` and `study`: from a data set's folder to a table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[[str], Any]
SHORT = "compare reviews.csv -m encoder --max-length 32 --learning-rate 0.003 --epochs 1 --eval-rows 8"
SHORT += " --second-baseline none --seeds 2 --json -o out"


def write_probes(folder: Path) -> None:
    """Probes by capability with three labels, and an original split with its revisions."""
    folder.mkdir()
    probes = [
        {"text": "good day", "label": 2, "capability": "Vocabulary"},
        {"text": "bad day", "label": 0, "capability": "Vocabulary"},
        {"text": "day", "label": 1, "capability": "Vocabulary"},
        {"text": "fine meal", "label": 0, "capability": "Wrong"},  # of a label that no good model gives
    ]
    originals = [{"text": "good film", "label": 1}, {"text": "awful song", "label": 0}]
    revised = [{"text": "bad song", "label": 0}, {"text": "poor film", "label": 0}]
    splits = {"probes": probes, "original": originals, "revised": revised}
    described = {}
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        described[name] = {"file": f"{name}.jsonl"}
    described["probes"]["label_names"] = ["negative", "neutral", "positive"]  # type: ignore[assignment]
    about = {"task": "classification", "name": "own", "label_names": ["neg", "pos"], "splits": described}
    (folder / "dataset.json").write_text(json.dumps(about))


@pytest.fixture(autouse=True)
def probes(workplace: Path) -> None:
    write_probes(workplace / "probes")


def predicted(run: Run, *texts: str) -> list[str]:
    done = run("predict trained --json " + " ".join(f"--text '{text}'" for text in texts))
    return [json.loads(line)["label"] for line in done.out.splitlines()]


def test_a_model_is_scored_on_further_sets_by_group_and_pair(run: Run) -> None:
    done = run("evaluate trained reviews.csv --also probes:probes --also probes:original+revised --json")
    assert done.code == 0
    shown = json.loads(done.out)
    one, pairs = shown["robustness"]["own:probes"], shown["robustness"]["own:original+revised"]
    answers = predicted(run, "good day", "bad day", "fine meal")
    right = [answer == gold for answer, gold in zip(answers, ("pos", "neg", "neg"), strict=True)]
    assert (one["rows"], one["left_out"], one["accuracy"]) == (3, 1, pytest.approx(sum(right) / 3))
    assert {group["name"]: group["accuracy"] for group in one["groups"]} == {
        "Vocabulary": sum(right[:2]) / 2,
        "Wrong": float(right[2]),
    }
    assert one["own_accuracy"] == shown["scores"]["accuracy"]
    film, song = predicted(run, "good film", "poor film"), predicted(run, "awful song", "bad song")
    assert pairs["consistency"] == ((film == ["pos", "neg"]) + (song == ["neg", "neg"])) / 2
    assert pairs["sets"] == 2


def test_a_model_alone_does_not_know_which_rows_it_was_trained_on(run: Run) -> None:
    shown = json.loads(run("evaluate trained reviews.csv --also probes:original --json").out)
    assert shown["robustness"]["own:original"]["met"] is None


def test_the_tables_show_failure_rates_and_say_what_was_left_out(run: Run) -> None:
    done = run("evaluate trained reviews.csv --also probes:probes --also probes:original")
    assert done.code == 0
    assert "own:probes by capability" in done.out
    assert "failure rate" in done.out
    assert "note: own:probes: 1 rows labelled 'neutral' are left out: the model has no such class" in done.err


def test_without_further_sets_nothing_is_said_of_them(run: Run) -> None:
    assert "robustness" not in json.loads(run("evaluate trained reviews.csv --json").out)


@pytest.mark.parametrize(
    ("also", "sentence"),
    [
        ("nowhere", "nowhere does not exist"),
        ("probes:none", "probes has no split 'none'"),
        ("sample", "is none of the model's classes, 'neg', 'pos'; score another set, or say in `labels`"),
        ("probes:revised --also probes:revised", "two robustness sets have the name 'own:revised'"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_before_anything_is_scored_or_trained(
    also: str, sentence: str, run: Run
) -> None:
    for words in ("evaluate trained reviews.csv", SHORT + " --recipes plain"):
        done = run(f"{words} --also {also}")
        assert done.code == 2
        assert done.err.count("\n") == 1 and sentence in done.err
    assert not Path("out/records").exists()


def test_every_run_of_a_comparison_is_scored_and_the_report_shows_it(run: Run) -> None:
    done = run(SHORT + " --recipes plain,hype --also probes:probes --also probes:original+revised")
    assert done.code == 0
    records = [json.loads(path.read_text()) for path in Path("out/records").iterdir()]
    assert len(records) == 4
    for record in records:
        found = record["robustness"]
        assert {name: scores["rows"] for name, scores in found.items()} == {"own:probes": 3, "own:original+revised": 4}
        assert found["own:probes"]["own_accuracy"] == pytest.approx(record["scores"]["test"]["accuracy"])
        assert found["own:probes"]["met"] in range(4)  # of three rows
        assert "probes" not in json.dumps(record["config"])
    assert '<section id="robustness"' in Path("out/report.html").read_text()
    table = Path("out/tables/failures.csv").read_text()
    assert "own:probes,capability,Vocabulary,hype" in table


def test_the_same_runs_have_the_same_names_and_scores_without_robustness_sets(run: Run) -> None:
    assert run(SHORT + " --recipes plain").code == 0
    before = {path.name: json.loads(path.read_text()) for path in Path("out/records").iterdir()}
    assert run(SHORT.replace("-o out", "-o other") + " --recipes plain --also probes:probes").code == 0
    after = {path.name: json.loads(path.read_text()) for path in Path("other/records").iterdir()}
    assert before.keys() == after.keys()
    for name in before:
        assert before[name]["scores"] == after[name]["scores"]
        assert before[name]["robustness"] == {} != after[name]["robustness"]


def test_trials_of_a_search_are_not_scored_on_them(run: Run) -> None:
    rows = Path("reviews.csv").read_text().splitlines(keepends=True)
    Path("reviews").mkdir()
    for split, start in {"train": 1, "dev": 2, "test": 3}.items():
        Path(f"reviews/{split}.csv").write_text("".join([rows[0], *rows[start::3]]))
    plan = {
        "model": "encoder",
        "tasks": {"own": {"source": "reviews", "robustness": [{"source": "probes", "split": "probes"}]}},
        "recipes": ["plain"],
        "seeds": 1,
        "run": {"steps": 4, "max_length": 16},
        "search": {"trials": 1, "space": {"run.learning_rate": [0.001, 0.01]}},
    }
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    assert run("study plan.yaml -o out").code == 0
    records = [json.loads(path.read_text()) for path in Path("out/records").iterdir()]
    assert {record["cell"]["role"]: sorted(record["robustness"]) for record in records} == {
        "trial": [],
        "baseline": ["own:probes"],
    }
