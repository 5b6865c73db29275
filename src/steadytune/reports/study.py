"""A study's folder as a report reads it: what was planned, which runs are on record, and what they left."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from steadytune.records import RunRecord, StoreError, StudyStore
from steadytune.reports.predictions import Answers, Predictions, answers_of, matrix_of, predictions_of

_FOLDERS = re.compile(r"""(?<![\w/.~])(?:~|\.{1,2})?/(?:[^\s/"'<>]+/)*(?=[^\s/"'<>])""")  # of a path, not of a hub name
_ROLES = {"baseline": 0, "recipe": 1, "control": 2}


class Place(NamedTuple):
    """Where recipes are compared."""

    task: str
    protocol: str
    budget: str

    @property
    def title(self) -> str:
        """As a heading."""
        return f"{self.task}, {self.protocol}, equal {self.budget}"


class Arm(NamedTuple):
    """One recipe in its role."""

    role: str
    recipe: str

    @property
    def title(self) -> str:
        """As a row of a table."""
        return self.recipe if self.role == "recipe" else f"{self.recipe} ({self.role})"


class Cell(NamedTuple):
    """One planned run."""

    place: Place
    arm: Arm
    seed: int


class Run(NamedTuple):
    """One run on record, with the id under which its tables lie."""

    id: str
    record: RunRecord


class Pooled(NamedTuple):
    """One vector per row."""

    labels: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Study:
    """A study's folder.

    Attributes:
        folder: where it lies.
        name: of the study.
        command: that ran it; "" where it is not known.
        plan: its text; "" without one.
        listed: whether the folder says what was planned; else the runs on record stand for it.
        planned: every final run, in order of the plan.
        isolates: recipes whose gain a control takes apart, by the name of the control.
        data: what is known of the rows, one mapping per task and protocol.
        runs: on record, by their place in the plan.
        trials: runs of searches, scored on dev alone.
        stale: number of records that belong to no planned run, such as those of settings that were changed since.
    """

    folder: Path
    name: str
    command: str
    plan: str
    listed: bool
    planned: tuple[Cell, ...]
    isolates: Mapping[str, tuple[str, ...]]
    data: tuple[Mapping[str, Any], ...]
    runs: Mapping[Cell, Run]
    trials: tuple[RunRecord, ...]
    stale: int = 0

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """In order of the plan."""
        return tuple(dict.fromkeys(cell.place for cell in self.planned))

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Of all places: baseline, recipes, controls, each in order of the plan."""
        return _ordered(cell.arm for cell in self.planned)

    @property
    def missing(self) -> tuple[Cell, ...]:
        """Planned runs without a record."""
        return tuple(cell for cell in self.planned if cell not in self.runs)

    @property
    def failed(self) -> dict[Cell, Run]:
        """Runs that failed, by their place in the plan."""
        return {cell: run for cell, run in self.runs.items() if run.record.status == "failed"}

    def arms_at(self, place: Place) -> tuple[Arm, ...]:
        """As `arms`, of one place.

        Args:
            place: where.
        """
        return _ordered(cell.arm for cell in self.planned if cell.place == place)

    def seeds(self, place: Place, arm: Arm) -> dict[int, Run | None]:
        """Every planned seed with its run; None where it has no record.

        Args:
            place: where.
            arm: of which recipe.
        """
        return {cell.seed: self.runs.get(cell) for cell in self.planned if (cell.place, cell.arm) == (place, arm)}

    def done(self, place: Place, arm: Arm) -> dict[int, Run]:
        """Runs that did not fail, by seed.

        Args:
            place: where.
            arm: of which recipe.
        """
        seeds = sorted(self.seeds(place, arm).items())
        return {seed: run for seed, run in seeds if run is not None and run.record.status == "done"}

    def example(self, place: Place) -> RunRecord | None:
        """Any record of a place that says what its task is; None where all failed.

        Args:
            place: where.
        """
        for arm in self.arms_at(place):
            for run in self.done(place, arm).values():
                return run.record
        return None

    def predictions(self, run: Run, split: str) -> Predictions | None:
        """Scores of one split; None where the run left no table, or its task has none of the kind.

        Args:
            run: that made them.
            split: "dev" or "test".
        Raises:
            StoreError: the table cannot be read.
        """
        table = self._rows(run, split)
        return None if table is None else predictions_of(run.record.task, table)

    def answers(self, run: Run, split: str) -> Answers | None:
        """Answers of one split, right or wrong; None where the run left none.

        Args:
            run: that made them.
            split: "dev" or "test".
        Raises:
            StoreError: the table cannot be read.
        """
        table = self._rows(run, split)
        return None if table is None else answers_of(run.record.task, table)

    def pooled(self, run: Run) -> Pooled | None:
        """Of test rows; None where the run left none.

        Args:
            run: that made them.
        Raises:
            StoreError: the table cannot be read.
        """
        table = self._table(StudyStore(self.folder).artifact_folder(run.id) / "pooled.parquet")
        if table is None:
            return None
        return Pooled(table["label"].to_numpy(), matrix_of(table["vector"], np.float32))

    def layers(self, run: Run) -> dict[str, Any] | None:
        """Stability, probing and attention by layer; None where nobody asked for them.

        Args:
            run: that left them.
        Raises:
            StoreError: the file cannot be read.
        """
        path = StudyStore(self.folder).artifact_folder(run.id) / "layers.json"
        return _read_json(path) if path.is_file() else None

    def texts(self, task: str) -> dict[str, str]:
        """Test texts by row id, both texts of a pair in one; empty where they are not kept here.

        Args:
            task: its name in the plan.
        Raises:
            StoreError: the table cannot be read.
        """
        table = self._table(self.folder / "texts" / f"{task}.parquet")
        rows = [] if table is None else table.select(["id", "text", "pair"]).to_pylist()
        return {row["id"]: " ⏐ ".join(filter(None, (row["text"], row["pair"]))) for row in rows}

    def tokens(self, run: Run) -> dict[str, list[str]]:
        """Tokens of the rows whose attention was measured, by row id; empty where they are not kept here.

        Args:
            run: that measured it.
        Raises:
            StoreError: the file cannot be read.
        """
        path = self.folder / "texts" / f"{run.id}-tokens.json"
        return _read_json(path) if path.is_file() else {}

    def published(self) -> "Study":
        """This study without the folders of whoever made it: of a path only the last name stays."""
        cleaned = json.loads(_without_folders(json.dumps(list(self.data), ensure_ascii=False)))
        return replace(
            self,
            command=_without_folders(self.command),
            plan=_without_folders(self.plan),
            data=tuple(cleaned),
            runs={cell: Run(run.id, _published(run.record)) for cell, run in self.runs.items()},
        )

    def _rows(self, run: Run, split: str) -> Any:
        table = self._table(StudyStore(self.folder).artifact_folder(run.id) / "predictions.parquet")
        return None if table is None else table.filter(pa.compute.equal(table["split"].cast(pa.string()), split))

    def _table(self, path: Path) -> Any:
        if not path.is_file():
            return None
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowInvalid):
            raise StoreError(f"{path} is no Parquet file; remove it, and its rows are left out.") from None


def read_study(folder: Path) -> Study:
    """What a study's folder holds.

    Args:
        folder: of the study.
    Raises:
        StoreError: there is no study in it, or a file of it cannot be read.
    """
    overview, plan = folder / "study.json", folder / "plan.yaml"
    about = _read_json(overview) if overview.is_file() else {}
    records = StudyStore(folder).records()
    placed = {id: record for id, record in records.items() if record.cell is not None}
    if not about and not placed:
        raise StoreError(f"{folder} holds no study; name the folder that `compare` or `study` wrote.")
    final = {id: record for id, record in placed.items() if record.cell and record.cell["role"] in _ROLES}
    listed = "cells" in about
    try:
        cells = [cell for cell in about.get("cells", ()) if cell["role"] in _ROLES]
        by_cell = [(_cell(record.cell or {}), Run(id, record)) for id, record in final.items()]
        by_cell.sort(key=lambda found: found[1].record.status == "done")  # of two records of a place, the good one
        found = dict(by_cell)
        for cell in cells:
            if cell.get("id") is not None:  # this very record: another one of the place is that of other settings
                found.pop(_cell(cell), None)
                if cell["id"] in final:
                    found[_cell(cell)] = Run(cell["id"], final[cell["id"]])
        planned = [_cell(cell) for cell in cells] if listed else sorted(found)
        isolates = {str(cell["recipe"]): tuple(cell["isolates"]) for cell in cells if cell.get("isolates")}
    except (KeyError, TypeError, ValueError):
        raise StoreError(f"{overview} does not say what was planned; run the study's command again.") from None
    planned = list(dict.fromkeys(planned))
    return Study(
        folder=folder,
        name=str(about.get("name") or folder.resolve().name),
        command=str(about.get("command", "")),
        plan=plan.read_text(encoding="utf-8") if plan.is_file() else "",
        listed=listed,
        planned=tuple(planned),
        isolates=isolates,
        data=tuple(about.get("data", ())),
        runs={cell: found[cell] for cell in planned if cell in found},
        stale=len(final.keys() - {run.id for run in found.values()}),
        trials=tuple(record for record in placed.values() if record.cell and record.cell["role"] == "trial"),
    )


def _published(record: RunRecord) -> RunRecord:
    said = {
        "model_name": _without_folders(record.model_name),
        "data_notes": [_without_folders(note) for note in record.data_notes],
        "failure": None if record.failure is None else _without_folders(record.failure),
    }
    return record.model_copy(update=said)


def _without_folders(text: str) -> str:
    return _FOLDERS.sub("", text)


def _cell(values: Mapping[str, Any]) -> Cell:
    task, protocol, budget, role, recipe = (
        str(values[name]) for name in ("task", "protocol", "budget", "role", "recipe")
    )
    return Cell(Place(task, protocol, budget), Arm(role, recipe), int(values["seed"]))


def _ordered(arms: Any) -> tuple[Arm, ...]:
    return tuple(sorted(dict.fromkeys(arms), key=lambda arm: _ROLES[arm.role]))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise StoreError(f"{path} is no JSON object; run the study's command again to write it anew.")
    return value
