"""One folder that holds a study: its plan, a record per cell, and who works on what. Never imports torch."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from steadytune.records.record import RunRecord
from steadytune.records.store import write_json, write_record, write_texts


class StoreError(ValueError):
    """A study's folder cannot be used."""


class StudyStore:
    """The folder of a study; several processes may write one store at the same time.

    A finished cell is one file `records/<cell id>.json`, written aside and renamed, and its tables lie in
    `artifacts/<cell id>/`. A run in progress lies in `work/<cell id>/`, and `claims/<cell id>` names its process.
    `study.json` says what was planned, `models/` holds runs that others start from, `texts/` rows for local reading.

    Args:
        folder: of the study; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record_path(self, cell: str) -> Path:
        """Where the record of a cell lies.

        Args:
            cell: its id.
        """
        return self.folder / "records" / f"{cell}.json"

    def work_folder(self, cell: str) -> Path:
        """Where a run in progress lies.

        Args:
            cell: its id.
        """
        return self.folder / "work" / cell

    def artifact_folder(self, cell: str) -> Path:
        """Where the tables of a finished cell lie.

        Args:
            cell: its id.
        """
        return self.folder / "artifacts" / cell

    def model_folder(self, run: str) -> Path:
        """Where a finished run lies whose model others start from.

        Args:
            run: its hash.
        """
        return self.folder / "models" / run

    def drop_models(self) -> None:
        """Remove the weights that other runs started from; their records stay."""
        for weights in (self.folder / "models").glob("*/model"):
            shutil.rmtree(weights, ignore_errors=True)

    def done(self) -> set[str]:
        """Ids of the cells that have a record."""
        return {path.stem for path in (self.folder / "records").glob("*.json")}

    def records(self) -> dict[str, RunRecord]:
        """All records by cell id, in order of id.

        Raises:
            StoreError: a file is no record.
        """
        return {path.stem: read_record(path) for path in sorted((self.folder / "records").glob("*.json"))}

    def finish(self, cell: str, record: RunRecord) -> None:
        """Keep what a run left: its tables, then its record, which says that the rest is there.

        Args:
            cell: its id.
            record: of its run.
        """
        work, artifacts = self.work_folder(cell), self.artifact_folder(cell)
        artifacts.mkdir(parents=True, exist_ok=True)
        for table in work.glob("*.parquet"):
            os.replace(table, artifacts / table.name)
        if (work / "layers.json").exists():
            os.replace(work / "layers.json", artifacts / "layers.json")
        if (work / "layers_tokens.json").exists():
            os.replace(work / "layers_tokens.json", self._local_texts() / f"{cell}-tokens.json")
        self.record_path(cell).parent.mkdir(parents=True, exist_ok=True)
        write_record(self.record_path(cell), record)
        shutil.rmtree(work, ignore_errors=True)

    def write_overview(self, overview: Mapping[str, Any]) -> None:
        """Write `study.json`, what is known of the study beside its records.

        Args:
            overview: plain JSON values.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "study.json", overview)

    def read_overview(self) -> dict[str, Any]:
        """What `write_overview` wrote.

        Raises:
            StoreError: it cannot be read.
        """
        path = self.folder / "study.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise StoreError(f"{path} cannot be read; run the study's command again to write it anew.") from None
        return found

    def write_texts(self, task: str, texts: Mapping[str, tuple[str, str]]) -> None:
        """Keep texts for a local report, where git does not see them: their licence may forbid to pass them on.

        Args:
            task: its name in the plan.
            texts: text and second text of each row ("" without one), by its id.
        """
        write_texts(self._local_texts() / f"{task}.parquet", texts)

    def _local_texts(self) -> Path:
        """The folder of texts, which git does not see."""
        (self.folder / "texts").mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("texts/\nwork/\nclaims/\nmodels/\nreport.html\n", encoding="utf-8")
        return self.folder / "texts"

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Inside the block no other process holds the lock of this name; waits for the one that does.

        Args:
            name: of the lock.
        """
        path = self.folder / "claims" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    @contextmanager
    def claimed(self, cell: str) -> Iterator[bool]:
        """True inside the block if this process may work on the cell: no other one does, and it has no record.

        The claim is a lock of the operating system, so it ends with its process, however that ends.

        Args:
            cell: its id.
        """
        path = self.folder / "claims" / cell
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield not self.record_path(cell).exists()
        finally:
            lock.release()


def read_record(path: Path) -> RunRecord:
    """A record.

    Args:
        path: its file.
    Raises:
        StoreError: it cannot be read.
    """
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise StoreError(f"{path} is no record that this version can read; remove it to run its cell again.") from None
