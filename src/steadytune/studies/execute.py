"""One cell of a study: run once, whatever is interrupted, and however many processes share the store."""

import json
import logging
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadytune.recipes import RunConfig
from steadytune.records import RunRecord, StoreError, StudyStore, read_record
from steadytune.records.store import written_aside
from steadytune.studies.outlook import Outlook
from steadytune.studies.overview import write_overview
from steadytune.studies.plan import Cell, Plan, PlanError, dump_plan, load_plan, run_hash
from steadytune.training.fit import Progress, fit
from steadytune.training.loading import RunError

logger = logging.getLogger("steadytune")


class FirstRunFailed(Exception):
    """The run whose model another one starts from came to nothing."""


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
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise PlanError(f"--output {folder} is not empty and holds no study; name another folder.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:  # another process may be starting the same study
            aside.write_text(dump_plan(plan), encoding="utf-8")
    return StudyStore(folder)


def prepare_store(plan: Plan, outlook: Outlook, folder: Path, command: str) -> StudyStore:
    """The store of a plan, with all that a study writes before its first run.

    Args:
        plan: what will run.
        outlook: of the plan.
        folder: where.
        command: that repeats the study.
    Raises:
        PlanError: the folder holds something else.
    """
    store = open_store(plan, folder)
    _check_inputs(store, outlook)
    write_overview(store, plan, outlook, command)
    return store


def _check_inputs(store: StudyStore, outlook: Outlook) -> None:
    """Runs on other rows, or from other weights, are no pairs."""
    for record in store.records().values():
        cell = record.cell or {}
        rows = outlook.fingerprints.get((str(cell.get("task")), str(cell.get("protocol"))), {})
        expected = rows.get(int(cell.get("seed", -1)))
        if record.status == "failed" or cell.get("role") == "trial" or expected is None:
            continue
        changed = "rows" if record.data_fingerprints != expected else ""
        started = str(record.config.get("model", ""))
        if record.config.get("after") is None and record.model_revision != outlook.model_revisions.get(started):
            changed = "model's weights"
        if changed:
            raise PlanError(
                f"the {changed} of {cell['task']!r}, {cell['protocol']!r} are not those of the runs on record in "
                f"{store.folder}; put them back, or name another folder."
            )


def run_if_open(cell: Cell, store: StudyStore, done: Callable[[], int], total: int, watch: Watch) -> bool:
    """Run a cell, unless it has a record or another process is working on it.

    Args:
        cell: what to run.
        store: where its record goes.
        done: counts the runs that have a record.
        total: number of all runs.
        watch: told about progress.
    Returns:
        Whether it ran.
    """
    if store.record_path(cell.id).exists():
        return False
    with store.claimed(cell.id) as mine:
        if not mine:
            return False
        before = done()
        store.finish(cell.id, run_cell(cell, store, lambda progress: watch(Moment(before, total, cell, progress))))
    watch(Moment(done(), total))
    return True


def run_cell(cell: Cell, store: StudyStore, watch: Callable[[Progress], None]) -> RunRecord:
    """The record of one cell; goes on where an interrupted run of it stopped.

    Args:
        cell: what to run.
        store: where its work lies.
        watch: told about progress.
    Raises:
        RunError: its folder or its inputs were changed; nothing is lost, and the run goes on when they are put back.
        OSError: the machine; nothing is lost.
    """
    work = store.work_folder(cell.id)
    if (work / "record.json").exists():  # finished, and interrupted before it was put away
        return read_record(work / "record.json").model_copy(update={"cell": cell.place()})
    final = cell.role != "trial"
    splits = ("dev", "test") if final else ("dev",)  # what helps to choose settings leaves the test rows closed
    try:
        start = None if cell.config.after is None else first_run(cell.config, store, watch)
    except FirstRunFailed as reason:
        return failed_record(cell, str(reason))
    try:
        record = fit(
            cell.config,
            work,
            watch=watch,
            export=False,
            pooled=final,
            splits=splits,
            start=start,
            **(_wanted_beside(cell, store) if final else {}),
        )
    except (OSError, MemoryError, RunError, StoreError):  # of the machine or the folder, which somebody can mend
        raise
    except Exception as error:  # noqa: BLE001 - a failed run is a result: it must not vanish, nor stop the others
        logger.warning("%s, seed %s failed: %s", cell.recipe, cell.config.seed, error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {str(error).strip() or 'no message'} ({Path(last.filename).name})"
        record = failed_record(cell, said)
    return record.model_copy(update={"cell": cell.place()})


def _wanted_beside(cell: Cell, store: StudyStore) -> dict[str, Any]:
    """What the plan of the store asks of a trained model beside its scores, as arguments of `fit`.

    One seed tells what happens inside the models, and others would cost.
    """
    path = store.folder / "plan.yaml"
    if not path.exists():
        return {}
    plan = load_plan(path)
    layers = plan.layers and cell.config.seed == plan.seed_list[0]
    return {"layers": layers, "robustness": plan.robustness(cell.task)}


def first_run(config: RunConfig, store: StudyStore, watch: Callable[[Progress], None]) -> Path:
    """Folder of the run that others start from; the first process that needs it does it, the others wait.

    Args:
        config: of a run that starts from it.
        store: where it lies.
        watch: told about progress.
    Raises:
        FirstRunFailed: it did.
    """
    name = run_hash(config.first)
    folder = store.model_folder(name)
    with store.locked(f"first-{name}"):
        record = read_record(folder / "record.json") if (folder / "record.json").exists() else None
        if record is not None and record.status == "done" and not (folder / "model").exists():
            shutil.rmtree(folder)  # its weights were dropped when nothing needed them any more
            record = None
        if record is None:
            record = fit(config.first, folder, watch=watch, splits=("dev",))
        if failure := record.failure:
            raise FirstRunFailed(f"the run that this one starts from failed: {failure}")
    return folder


def failed_record(cell: Cell, failure: str) -> RunRecord:
    """The record of a cell that came to nothing.

    Args:
        cell: which.
        failure: why.
    """
    return RunRecord(
        run_id=cell.id,
        config=json.loads(cell.config.model_dump_json()),
        cell=cell.place(),
        status="failed",
        failure=failure,
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
