"""The page on tasks: every row that it shows is read as the task of its heading, from JSON Lines and from CSV."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from steadytune.data import load_dataset
from steadytune.tasks import task_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/tasks.md").read_text(encoding="utf-8")
SECTIONS: dict[str, str] = dict(re.findall(r"^## [^\n]*: `(\w+)`\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL))
SEPARATORS = {"labels": ";", "tokens": " ", "tags": " ", "choices": ";"}


def row_of(task: str) -> dict[str, Any]:
    (shown,) = re.findall(r"^```json\n(.*?)^```$", SECTIONS[task], flags=re.MULTILINE | re.DOTALL)
    row: dict[str, Any] = json.loads(shown)
    return row


def cell(name: str, value: Any) -> str:
    """A value as the page says that CSV has it."""
    if isinstance(value, list):
        return SEPARATORS[name].join(value)
    return value if isinstance(value, str) else json.dumps(value)


def test_the_page_shows_every_task_whose_rows_have_parts() -> None:
    assert list(SECTIONS) == ["multi_label", "token_classification", "multiple_choice", "question_answering"]


@pytest.mark.parametrize("task", SECTIONS)
def test_a_row_tells_its_task_and_means_the_same_in_csv(task: str, tmp_path: Path) -> None:
    row = row_of(task)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([list(row), [cell(name, value) for name, value in row.items()]])
    found = load_dataset(str(tmp_path / "rows.jsonl"))
    same = load_dataset(str(tmp_path / "rows.csv"), task=task)  # type: ignore[arg-type]  # a name of this list
    assert found.task == same.task == task
    assert found.label_names == same.label_names
    read, again = (next(iter(one.splits.values())) for one in (found, same))
    assert (read.texts, read.pairs, read.labels) == (again.texts, again.pairs, again.labels)


@pytest.mark.parametrize("task", SECTIONS)
def test_the_metric_that_decides_stands_first(task: str) -> None:
    names = tuple(row_of(task).get("tags", ("a", "b")))
    scores = SECTIONS[task].partition("\nScore")[2]
    assert re.findall(r"\*\*`(\w+)`\*\*", scores)[0] == task_of(task, names, None).metric
