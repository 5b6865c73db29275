"""Run the cells of a study: each once, whatever is interrupted, and however many processes share the store."""

import json
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadytune.records import RunRecord, StudyStore, read_record
from steadytune.records.store import written_aside
from steadytune.studies.plan import Cell, Plan, PlanError, dump_plan, load_plan
from steadytune.training.fit import Progress, fit

logger = logging.getLogger("steadytune")


@dataclass(frozen=True)
class Moment:
    """Where a study is.

    Attributes:
        done: cells that have a record.
        total: cells in all.
        cell: the one in progress; None between two.
        progress: of its run.
    """

    done: int
    total: int
    cell: Cell | None = None
    progress: Progress | None = None


Watch = Callable[[Moment], None]


def open_store(plan: Plan, folder: Path) -> StudyStore:
    """The store of a plan: a new folder, or one that holds the same plan.

    Args:
        plan: what will run.
        folder: where.
    Raises:
        PlanError: the folder holds something else.
    """
    path = folder / "plan.yaml"
    if folder.exists() and not folder.is_dir():
        raise PlanError(f"--output {folder} is a file; name a folder.")
    if path.exists():
        if load_plan(path) != plan:
            raise PlanError(f"--output {folder} holds another plan; repeat its settings or name another folder.")
    elif folder.exists() and any(folder.iterdir()):
        raise PlanError(f"--output {folder} is not empty and holds no study; name another folder.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:  # another process may be starting the same study
            aside.write_text(dump_plan(plan), encoding="utf-8")
    return StudyStore(folder)


def execute(cells: Sequence[Cell], store: StudyStore, *, watch: Watch = lambda moment: None) -> None:
    """Run every cell that has no record and that no other process is working on.

    A cell that fails gets a record that says why, and the study goes on.

    Args:
        cells: in the order in which they run.
        store: where records go; other processes may work on it at the same time.
        watch: told about progress.
    """
    wanted = {cell.id for cell in cells}
    for cell in cells:
        with store.claimed(cell.id) as mine:
            if not mine:
                continue
            done = len(wanted & store.done())

            def report(progress: Progress, cell: Cell = cell, done: int = done) -> None:
                watch(Moment(done, len(wanted), cell, progress))

            store.finish(cell.id, run_cell(cell, store, report))
        watch(Moment(len(wanted & store.done()), len(wanted)))


def run_cell(cell: Cell, store: StudyStore, watch: Callable[[Progress], None]) -> RunRecord:
    """The record of one cell; goes on where an interrupted run of it stopped.

    Args:
        cell: what to run.
        store: where its work lies.
        watch: told about progress.
    """
    work = store.work_folder(cell.id)
    if (work / "record.json").exists():  # finished, and interrupted before it was put away
        return read_record(work / "record.json").model_copy(update={"cell": cell.place()})
    try:
        record = fit(cell.config, work, watch=watch, export=False, pooled=True)
    except Exception as error:  # noqa: BLE001 - a failed run is a result: it must not vanish, nor stop the others
        logger.warning("%s, seed %s failed: %s", cell.recipe, cell.config.seed, error)
        record = _failed(cell, error)
    return record.model_copy(update={"cell": cell.place()})


def _failed(cell: Cell, error: Exception) -> RunRecord:
    last = traceback.extract_tb(error.__traceback__)[-1]
    known: dict[str, Any] = {
        "run_id": cell.id,
        "config": json.loads(cell.config.model_dump_json()),
        "failure": f"{type(error).__name__}: {str(error).strip() or 'no message'} ({Path(last.filename).name})",
    }
    return RunRecord(
        **known,
        status="failed",
        task="",
        metric="",
        label_names=[],
        data_fingerprints={},
        data_rows={},
        data_notes=[],
        model_name=cell.config.model,
        model_revision="",
        dropout={},
        learning_rate=cell.config.learning_rate,
        coefficients={},
        scores={},
        history=[],
        notices=[],
        cost=None,
        versions={},
        hardware={},
    )
