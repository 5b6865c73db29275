"""The record of a soup: a model whose weights are the mean of those of several runs."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from steadytune.records.study import StoreError

SOUP_FILE = "soup.json"


class Ingredient(BaseModel):
    """One of the runs that a soup was offered.

    Attributes:
        run_id: of its record.
        path: its folder, seen from the soup's.
        dev_scores: its metrics on validation, from its record.
        kept: its weights are part of the mean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    path: str
    dev_scores: dict[str, float | None]
    kept: bool


class SoupRecord(BaseModel):
    """What a soup was made of and what came of it.

    Attributes:
        schema_version: of this layout.
        rule: how runs were chosen: "greedy", by validation, or "uniform", all.
        task: name of the task.
        metric: the score that decides, higher is better.
        label_names: in the order of their indices.
        model_name: the encoder that all runs started from.
        model_revision: its weights, as in the records of the runs.
        head_seed: drew the classification head that all runs started from.
        config: the run file of the best run, verbatim; soup and runs read their rows by it.
        data_fingerprints: SHA-256 of the rows of "dev" and "test".
        data_rows: their number.
        ingredients: the runs, best on validation first.
        scores: metrics of the soup by split; null where one is not a finite number.
        best_scores: those of the first ingredient, from its record.
        versions: of Python and the packages that matter.
        commit: as in the record of a run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    rule: Literal["greedy", "uniform"]
    task: str
    metric: str
    label_names: list[str]
    model_name: str
    model_revision: str
    head_seed: int
    config: dict[str, Any]
    data_fingerprints: dict[str, str]
    data_rows: dict[str, int]
    ingredients: list[Ingredient]
    scores: dict[str, dict[str, float | None]]
    best_scores: dict[str, dict[str, float | None]]
    versions: dict[str, str]
    commit: str | None = None


def read_soup(path: Path) -> SoupRecord:
    """The record of a soup.

    Args:
        path: its file.
    Raises:
        StoreError: it cannot be read.
    """
    try:
        return SoupRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise StoreError(f"{path} is no record of a soup that this version can read.") from None
