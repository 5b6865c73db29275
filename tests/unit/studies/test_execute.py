"""One cell: what becomes a failed run, and what stops the study because somebody can mend it."""

from pathlib import Path
from typing import Any

import pytest

from steadytune.recipes.recipe import validated
from steadytune.records import StudyStore
from steadytune.studies import execute
from steadytune.studies.execute import run_if_open
from steadytune.studies.plan import Cell, Plan
from steadytune.training.loading import RunError


@pytest.fixture
def cell() -> Cell:
    values: dict[str, Any] = {"tasks": {"sample": {"source": "sample"}}, "recipes": ["plain"], "seeds": 1}
    return validated(Plan, values, "plan").cells()[0]


def runs(cell: Cell, store: StudyStore, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the cell where training ends in this error."""

    def fails(*args: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(execute, "fit", fails)
    run_if_open(cell, store, lambda: 0, 1, lambda moment: None)


def test_a_run_that_fails_in_training_is_a_record_that_says_why(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(cell, StudyStore(tmp_path), FloatingPointError("the loss is no number"), monkeypatch)
    (record,) = StudyStore(tmp_path).records().values()
    assert record.status == "failed"
    assert record.failure is not None and record.failure.startswith("FloatingPointError: the loss is no number")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError(), RunError("the checkpoint is corrupt.")], ids=repr
)
def test_what_somebody_can_mend_stops_the_study_and_loses_nothing(
    error: Exception, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StudyStore(tmp_path)
    store.work_folder(cell.id).mkdir(parents=True)
    with pytest.raises(type(error)):
        runs(cell, store, error, monkeypatch)
    assert store.done() == set()
    assert store.work_folder(cell.id).exists()
