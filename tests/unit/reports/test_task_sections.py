"""Errors, calibration, verdict and data of every task: what is right, what is shown, and why something is not."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from steadytune.records import write_predictions
from steadytune.reports.document import write_report
from steadytune.reports.page import Drawings, Section, Words
from steadytune.reports.sections.origin import data_section
from steadytune.reports.sections.rows import calibration_section, errors_section
from steadytune.reports.sections.verdict import verdict_section
from steadytune.reports.study import read_study
from steadytune.reports.tables import Sheet, Value
from toystudy import SCRIPT, make_study

Row = dict[str, Any]
NAMES = ["bad", "fair", "good"]
SEEDS = 3
ANSWERS: dict[str, tuple[Row, Row]] = {
    "multi_label": ({"label": [0, 2], "logits": [1.0, -1.0, 1.0]}, {"label": [0, 2], "logits": [1.0, 1.0, -1.0]}),
    "token_classification": ({"label": [0, 1], "predicted": [0, 1]}, {"label": [0, 1], "predicted": [0, 0]}),
    "multiple_choice": ({"label": 1, "logits": [0.0, 1.0]}, {"label": 1, "logits": [1.0, 0.0, 0.0]}),
    "question_answering": (
        {"label": [0, 3], "predicted": [0, 3], "exact_match": True},
        {"label": [0, 3], "predicted": [4, 3], "exact_match": False},
    ),
}
"""A right and a wrong row of each task, as its table holds it."""
METRICS = {
    "multi_label": "micro_f1",
    "token_classification": "entity_f1",
    "multiple_choice": "accuracy",
    "question_answering": "f1",
}
RIGHT = {"plain": (True, False, True, False), "hype": (True, True, False, False)}
"""By recipe, which rows it gets right with every seed."""

Tabled = Callable[..., Path]


@pytest.fixture
def tabled(tmp_path: Path) -> Tabled:
    """Makes the study of a task: two recipes with three seeds, whose tables hold these rows."""

    def study(task: str, rows: dict[str, Sequence[Row]] | None = None, **changes: Any) -> Path:
        folder = make_study(tmp_path / "study", ["shop"], {"plain": "baseline", "hype": "recipe"}, range(SEEDS))
        about = {"task": task, "metric": METRICS.get(task, "accuracy"), "label_names": NAMES, **changes}
        for path in (folder / "records").iterdir():
            record = json.loads(path.read_text()) | about
            recipe, seed = record["cell"]["recipe"], record["cell"]["seed"]
            own = [ANSWERS[task][not right] for right in RIGHT[recipe]] if rows is None else rows[recipe]
            scores = {name: {record["metric"]: 0.5 + seed / 10} for name in ("dev", "test")}
            path.write_text(json.dumps({**record, "scores": changes.get("scores", scores)}))
            ids = [f"row-{number}" for number in range(len(own))]
            splits = [name for name in ("dev", "test") for _ in own]
            columns = {name: [row[name] for row in own] * 2 for name in own[0]}
            table = folder / "artifacts" / path.stem / "predictions.parquet"
            write_predictions(table, [f"dev-{one}" for one in ids] + ids, splits, columns)
        return folder

    return study


def sheet(section: Section, name: str) -> list[dict[str, Value]]:
    """The rows of the first table of this name, by the titles of its columns."""
    found = next(one for one in section.sheets() if one.name == name)
    return [dict(zip([column.title for column in found.columns], row, strict=True)) for row in found.rows]


def said(section: Section) -> str:
    blocks = [block for group in section.groups for block in group.blocks]
    return " ".join(line for block in blocks if isinstance(block, Words) for line in block.lines)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ANSWERS)
def test_the_rows_that_a_recipe_gets_right_are_counted_over_its_seeds(task: str, tabled: Tabled) -> None:
    rows = sheet(errors_section(read_study(tabled(task))), "right")
    assert [row["recipe"] for row in rows] == ["plain (baseline)", "hype"]
    counts = [(row["rows right, %"], row["right in every seed"], row["in some"], row["in none"]) for row in rows]
    assert counts == [(50.0, 2, 0, 2)] * 2


def test_a_row_that_some_seeds_get_right_counts_as_such(tabled: Tabled) -> None:
    folder = tabled("question_answering")
    one = next(folder.glob("artifacts/*"))
    columns: Row = {"label": [[0, 3]] * 4, "predicted": [[0, 3]] * 4, "exact_match": [True] * 4}
    write_predictions(one / "predictions.parquet", [f"row-{n}" for n in range(4)], ["test"] * 4, columns)
    recipe = json.loads((folder / "records" / f"{one.name}.json").read_text())["cell"]["recipe"]
    rows = sheet(errors_section(read_study(folder)), "right")
    row = next(row for row in rows if str(row["recipe"]).startswith(recipe))
    assert (row["right in every seed"], row["in some"], row["in none"]) == (2, 2, 0)
    assert row["rows right, %"] == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)


@pytest.mark.parametrize("task", ANSWERS)
def test_rows_that_change_sides_are_named(task: str, tabled: Tabled) -> None:
    section = errors_section(read_study(tabled(task)))
    assert sheet(section, "flips") == [{"recipe": "hype", "rows won": 1, "rows lost": 1}]
    won, lost = (one for one in section.sheets() if one.name == "flip-rows")
    assert (won.title, won.rows[0][0]) == ("hype: 1 rows won", "row-1")
    assert (lost.title, lost.rows[0][0]) == ("hype: 1 rows lost", "row-2")


def test_answers_that_have_names_are_shown_with_them(tabled: Tabled) -> None:
    won = sheet(errors_section(read_study(tabled("multi_label"))), "flip-rows")[0]
    assert (won["true"], won["baseline says"], won["recipe says"]) == ("bad, good", "bad, fair", "bad, good")


def test_a_text_without_a_label_says_none(tabled: Tabled) -> None:
    nothing = {"label": [], "logits": [-1.0, -1.0, -1.0]}
    rows = {"plain": [{**nothing, "logits": [-1.0, 1.0, -1.0]}], "hype": [nothing]}
    won = sheet(errors_section(read_study(tabled("multi_label", rows))), "flip-rows")[0]
    assert (won["true"], won["baseline says"], won["recipe says"]) == ("none", "fair", "none")


def test_a_choice_is_shown_by_its_place(tabled: Tabled) -> None:
    won = sheet(errors_section(read_study(tabled("multiple_choice"))), "flip-rows")[0]
    assert (won["true"], won["baseline says"], won["recipe says"]) == (1, 0, 1)


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_answers_that_have_no_short_name_are_not_shown(task: str, tabled: Tabled) -> None:
    won = sheet(errors_section(read_study(tabled(task))), "flip-rows")[0]
    assert list(won) == ["row", "baseline right, %", "recipe right, %", "text"]


def test_texts_stand_in_the_local_page_alone(tabled: Tabled) -> None:
    folder = tabled("token_classification")
    assert "secret text 1" in write_report(folder).read_text()
    published = write_report(folder, publish=True).read_text()
    assert "secret" not in published and "row-1" in published


def test_the_table_of_right_rows_becomes_a_file(tabled: Tabled) -> None:
    folder = tabled("multiple_choice")
    write_report(folder)
    assert (folder / "tables" / "right.csv").read_text().startswith("task,protocol,budget,recipe,")


def test_runs_without_tables_have_no_answers(tabled: Tabled) -> None:
    folder = tabled("question_answering")
    for path in folder.glob("artifacts/*/predictions.parquet"):
        path.unlink()
    assert said(errors_section(read_study(folder))) == "No run here left predictions that are finite."


def test_a_task_that_this_version_does_not_know_says_so(tabled: Tabled) -> None:
    study = read_study(tabled("spans", {recipe: [{"label": 0}] for recipe in RIGHT}))
    assert said(errors_section(study)) == said(calibration_section(study)) == "There is nothing to show for spans here."


# -- calibration ------------------------------------------------------------------------------------------------------


def test_choices_are_calibrated_whatever_their_number(tabled: Tabled) -> None:
    section = calibration_section(read_study(tabled("multiple_choice")))
    assert any(isinstance(block, Drawings) for block in section.groups[0].blocks)
    rows = sheet(section, "calibration")
    assert [row["recipe"] for row in rows] == ["plain (baseline)", "hype"]
    of_two, of_three = math.e / (math.e + 1), math.e / (math.e + 2)  # half of the rows are right, the others wrong
    assert rows[0]["error before, %"] == pytest.approx(100 * ((1 - of_two) / 2 + of_three / 2))


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("multi_label", "each class has a probability of its own"),
        ("token_classification", "runs keep the tags of words and not their probabilities"),
        ("question_answering", "runs keep answers and not their probabilities"),
    ],
)
def test_where_calibration_is_not_shown_the_page_says_why(task: str, why: str, tabled: Tabled) -> None:
    sentence = said(calibration_section(read_study(tabled(task))))
    assert why in sentence
    assert "no classes" not in sentence


def test_a_regression_has_nothing_to_calibrate(tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path / "study", ["similarity"], {"plain": "baseline"}, [0]))
    assert said(calibration_section(study)) == "There are no classes here, so nothing to calibrate."


# -- verdict ----------------------------------------------------------------------------------------------------------


def doubted(tabled: Tabled, task: str, score: float, rows: dict[str, Sequence[Row]] | None = None, **more: str) -> str:
    """The words of the verdict where every run has this score."""
    metric = more.get("metric", METRICS[task])
    return said(verdict_section(read_study(tabled(task, rows, scores={"test": {metric: score}}, **more))))


@pytest.mark.parametrize("task", ANSWERS)
def test_a_baseline_at_the_ceiling_cannot_decide_whatever_the_metric(task: str, tabled: Tabled) -> None:
    assert "These data cannot decide: the baseline's mean of 100" in doubted(tabled, task, 1.0)


@pytest.mark.parametrize("task", ["multi_label", "token_classification", "question_answering"])
def test_a_metric_without_a_chance_level_is_not_held_against_one(task: str, tabled: Tabled) -> None:
    assert "cannot decide" not in doubted(tabled, task, 0.5)


def test_chance_of_a_choice_is_one_in_as_many_as_a_row_has(tabled: Tabled) -> None:
    """Two rows of two choices and two of three: (2 · 1/2 + 2 · 1/3) / 4."""
    assert "of chance, 41.67" in doubted(tabled, "multiple_choice", 5 / 12)


def test_chance_of_tagged_words_is_the_share_of_the_commonest_tag(tabled: Tabled) -> None:
    words = [{"label": [0, 0, 1], "predicted": [0, 0, 0]}, {"label": [0], "predicted": [0]}]
    shown = doubted(tabled, "token_classification", 0.75, {"plain": words, "hype": words}, metric="accuracy")
    assert "of chance, 75." in shown


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "title", "head"),
    [
        ("classification", "Rows by class", "class"),
        ("multi_label", "Rows by class; a row counts for each of its classes", "class"),
        ("token_classification", "Words by tag", "tag"),
    ],
)
def test_labels_are_counted_in_what_they_stand_for(task: str, title: str, head: str, tabled: Tabled) -> None:
    rows = {recipe: [{"label": 0, "logits": [1.0, 0.0, 0.0]}] for recipe in RIGHT} if task not in ANSWERS else None
    found = next(one for one in data_section(read_study(tabled(task, rows))).sheets() if one.name == "labels")
    assert isinstance(found, Sheet)
    assert (found.title, found.columns[0].title) == (title, head)
    assert found.rows[0][0] == SCRIPT
