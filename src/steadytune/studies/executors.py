"""Who runs a study: this process, several processes, or a Ray cluster; all leave the same records in one store."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from steadytune.records import RunRecord, StudyStore, read_record
from steadytune.studies.execute import Moment, Watch, failed_record, run_if_open
from steadytune.studies.outlook import Outlook, Place
from steadytune.studies.plan import Cell, Plan, PlanError
from steadytune.studies.search import Chain, Choice, chains, changed, explore, place_of, with_settings

logger = logging.getLogger("steadytune")

_PAUSE_SECONDS = 0.5  # between two looks at what other processes do
Begin = Callable[[], None]
"""Called once in every new process; a function of a module, so that it can be sent there."""


@dataclass(frozen=True)
class Agenda:
    """Everything that a study runs: first the trials of its search, then the final runs.

    Attributes:
        plan: the study.
        steps: optimizer steps of every recipe at equal compute, at its own settings.
        units: pass units of one final run at equal compute, by task and protocol.
    """

    plan: Plan
    steps: Mapping[Place, int]
    units: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, plan: Plan, outlook: Outlook) -> "Agenda":
        """The agenda of a plan.

        Args:
            plan: the study.
            outlook: of the plan.
        """
        units: dict[tuple[str, str], float] = {}
        for (task, protocol, recipe), steps in outlook.steps.items():
            own = steps * outlook.units_per_step[task, protocol, recipe]
            units[task, protocol] = max(own, units.get((task, protocol), 0.0))
        return cls(plan, dict(outlook.equal_compute_steps), units)

    @cached_property
    def planned(self) -> list[Cell]:
        """The final runs, with the recipes' own settings."""
        return self.plan.cells(dict(self.steps))

    @cached_property
    def chains(self) -> list[Chain]:
        """The trials."""
        return chains(self.plan, self.planned)

    @property
    def total(self) -> int:
        """Number of runs, trials included."""
        trials = sum(chain.search.trials * len(chain.search.seeds) for chain in self.chains)
        return trials + len({cell.id for cell in self.planned})

    def finished(self, store: StudyStore) -> int:
        """Number of its runs that have a record; while settings are searched, at most as many as it has.

        Args:
            store: of the study.
        """
        if self.chains:
            return min(len(store.done()), self.total)
        return len({cell.id for cell in self.planned} & store.done())

    def final_cells(self, choices: Mapping[Place, Choice]) -> list[Cell]:
        """The final runs whose settings are known.

        Args:
            choices: that the search has made so far.
        """
        waiting = {chain.place for chain in self.chains} - choices.keys()
        return [self._chosen(cell, choices) for cell in self.planned if place_of(cell) not in waiting]

    def _chosen(self, cell: Cell, choices: Mapping[Place, Choice]) -> Cell:
        choice = choices.get(place_of(cell))
        if choice is None or choice.settings is None:  # not searched; or all trials failed, and so will this run
            return cell
        config = with_settings(cell.config, choice.settings)
        if cell.budget == "compute" and choice.units_per_step:  # a setting may change what a step costs
            units = self.units[cell.task, cell.protocol] / config.recipe.longer  # a factor that comes on top
            steps = max(1, round(units / choice.units_per_step))
            config = config.with_run_setting("steps", steps)
        return changed(cell, config=config)

    def choices(self, store: StudyStore) -> dict[Place, Choice]:
        """What the search has chosen, from the records alone.

        Args:
            store: of the study.
        """
        found = {chain.place: explore(chain, lambda cell: recorded(cell, store)) for chain in self.chains}
        return {place: choice for place, choice in found.items() if choice is not None}


def recorded(cell: Cell, store: StudyStore) -> RunRecord | None:
    """The record of a run, if it has one.

    Args:
        cell: the run.
        store: of the study.
    """
    path = store.record_path(cell.id)
    return read_record(path) if path.exists() else None


def records_of(cells: Iterable[Cell], store: StudyStore) -> list[RunRecord]:
    """The records of these runs, each with the run's own place: two places of a plan may share a run.

    Args:
        cells: the runs; those without a record are left out.
        store: of the study.
    """
    found = ((cell, recorded(cell, store)) for cell in cells)
    return [record.model_copy(update={"cell": cell.place()}) for cell, record in found if record is not None]


def run_here(agenda: Agenda, store: StudyStore, *, watch: Watch = lambda moment: None) -> None:
    """Run a study in this process, until every run has a record; waits for those that other processes work on.

    Args:
        agenda: what to run.
        store: where records go; other processes may work on it at the same time.
        watch: told about progress.
    """
    choices: dict[Place, Choice] = {}
    while True:
        ran = False
        for chain in agenda.chains:
            if chain.place not in choices and (choice := _settled(chain, store, agenda.total, watch)) is not None:
                choices[chain.place], ran = choice, True
        cells = agenda.final_cells(choices)
        for cell in cells:
            ran |= run_if_open(cell, store, lambda: agenda.finished(store), agenda.total, watch)
        if len(choices) == len(agenda.chains) and {cell.id for cell in cells} <= store.done():
            store.drop_models()
            return
        if not ran:
            time.sleep(_PAUSE_SECONDS)


def run_in_processes(
    agenda: Agenda,
    store: StudyStore,
    workers: int,
    *,
    watch: Watch = lambda moment: None,
    begin: Begin = lambda: None,
) -> None:
    """Run a study in several new processes, which share the work through the store's claims and divide the threads.

    A process that dies is reported, and the others finish what it had begun; runs are left over only if all die.

    Args:
        agenda: what to run.
        store: where records go.
        workers: number of processes.
        watch: told about progress.
        begin: called in every process.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could neither use a GPU nor the parent's threads
    threads = max(1, torch.get_num_threads() // workers)
    crew = [context.Process(target=_work, args=(agenda, store.folder, threads, begin)) for _ in range(workers)]
    done, alive = agenda.finished(store), dict(enumerate(crew, start=1))
    try:
        for process in crew:
            process.start()
        while alive:
            wait([process.sentinel for process in alive.values()], timeout=_PAUSE_SECONDS)
            for number, process in list(alive.items()):
                if not process.is_alive():
                    del alive[number]
                    if process.exitcode:
                        logger.warning("worker %d %s; %d go on.", number, _ending(process.exitcode), len(alive))
            if (now := agenda.finished(store)) > done:
                done = now
                watch(Moment(done, agenda.total))
    finally:
        for process in alive.values():
            if process.pid is not None:
                process.terminate()
                process.join()


def _work(agenda: Agenda, folder: Path, threads: int, begin: Begin) -> None:
    """What one of several processes does; it ends with the one that started it."""
    begin()
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def watch(moment: Moment) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)

    try:
        run_here(agenda, StudyStore(folder), watch=watch)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (OSError, ValueError) as error:  # what somebody can mend: a sentence, not a traceback
        logger.error("%s", error)
        raise SystemExit(2) from None


def _ending(code: int) -> str:
    return f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def run_on_ray(
    agenda: Agenda, store: StudyStore, *, watch: Watch = lambda moment: None, begin: Begin = lambda: None
) -> None:
    """Run a study on Ray: the cluster that `RAY_ADDRESS` names, or a local one that ends with the study.

    A chain of trials is one task, and so is a final run, on one processor each. Every machine of the cluster sees the
    working directory and the store under the same paths.

    Args:
        agenda: what to run.
        store: where records go.
        watch: told about progress.
        begin: called in every task.
    Raises:
        PlanError: Ray is not installed.
    """
    ray = ray_module()
    address = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else tasks that reserve no GPU do not see one
    local = {} if address else {"include_dashboard": False}
    ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    try:
        _drive(ray, agenda, store, watch, begin)
    finally:
        ray.shutdown()


def _drive(ray: Any, agenda: Agenda, store: StudyStore, watch: Watch, begin: Begin) -> None:
    settle, run = (ray.remote(num_cpus=1)(function) for function in (_settle_there, _run_there))
    there = (store.folder.resolve(), Path.cwd(), begin)
    pending: dict[Any, Chain | Cell] = {settle.remote(chain, *there): chain for chain in agenda.chains}
    choices: dict[Place, Choice] = {}
    sent = done = store.done()
    while True:
        new = {cell.id: cell for cell in agenda.final_cells(choices) if cell.id not in sent}
        sent = sent | new.keys()
        pending.update({run.remote(cell, *there): cell for cell in new.values()})
        if not pending:
            store.drop_models()
            return
        for reference in ray.wait(list(pending), num_returns=1, timeout=_PAUSE_SECONDS)[0]:
            what = pending.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                names = what.place if isinstance(what, Chain) else place_of(what)
                logger.warning("%s: its task was lost: %s", ", ".join(names), str(error).strip().splitlines()[-1])
                continue
            if isinstance(what, Chain):
                choices[what.place] = result
        if (now := store.done()) > done:
            done = now
            watch(Moment(agenda.finished(store), agenda.total))


def _settle_there(chain: Chain, folder: Path, directory: Path, begin: Begin) -> Choice:
    """One task on Ray: all trials of a chain, wherever they ran."""
    begin()
    os.chdir(directory)  # names of data and models are relative to it
    while (choice := _settled(chain, StudyStore(folder), 0, lambda moment: None)) is None:
        time.sleep(_PAUSE_SECONDS)
    return choice


def _run_there(cell: Cell, folder: Path, directory: Path, begin: Begin) -> None:
    """One task on Ray: a final run."""
    begin()
    os.chdir(directory)
    _ensure(cell, StudyStore(folder), 0, lambda moment: None)


def ray_module() -> Any:
    """The package `ray`, loaded only when it is asked for.

    Raises:
        PlanError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise PlanError("--ray needs Ray; install it with pip install 'steadytune[ray]'.") from None
    return ray


def _settled(chain: Chain, store: StudyStore, total: int, watch: Watch) -> Choice | None:
    """The choice of a chain after all its trials; None if another process is at it."""
    with store.claimed(chain.id) as mine:
        if not mine:
            return None
        choice = explore(chain, lambda cell: _ensure(cell, store, total, watch))
        if choice is not None and choice.settings is None:
            for cell in chain.finals:
                _lose(cell, store, f"no settings to run with: all {choice.failed} trials of the search failed")
        return choice


def _ensure(cell: Cell, store: StudyStore, total: int, watch: Watch) -> RunRecord:
    """The record of a run, made here unless another process makes it."""
    while (record := recorded(cell, store)) is None:
        if not run_if_open(cell, store, lambda: len(store.done()), total, watch):
            time.sleep(_PAUSE_SECONDS)
    return record


def _lose(cell: Cell, store: StudyStore, failure: str) -> None:
    with store.claimed(cell.id) as mine:
        if mine:
            store.finish(cell.id, failed_record(cell, failure))
