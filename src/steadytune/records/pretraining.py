"""The record of one pre-training run."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from steadytune.records.record import Cost
from steadytune.records.study import StoreError


class Texts(BaseModel):
    """What a split holds.

    Attributes:
        texts: how many; null where the split is the end of the training texts.
        tokens: how many, with those that part texts; null likewise.
        sequences: packed ones that are used.
        masked_places: that the model is asked for; null where they change from epoch to epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: int | None = None
    tokens: int | None = None
    sequences: int
    masked_places: int | None = None


class Point(BaseModel):
    """One measurement of the clean model on the fixed masked set.

    Attributes:
        step: optimizer steps done.
        seconds: of training until then; reading, measuring and saving do not count.
        pass_units: see `Cost`.
        loss: nats per masked place; null where it is not a finite number.
        accuracy: share of masked places that are guessed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    seconds: float
    pass_units: float
    loss: float | None
    accuracy: float | None


class PretrainRecord(BaseModel):
    """A finished or failed pre-training run; enough to remake every number of a report.

    Attributes:
        schema_version: of this layout.
        kind: tells it from other records.
        run_id: content hash of configuration and texts.
        config: the run file, verbatim.
        metric: the score that decides, higher is better.
        data_fingerprints: SHA-256 over the files of each split.
        data: what the splits hold, by name.
        data_notes: what was inferred or noticed.
        model_name: what the run began with.
        model_revision: commit of its hub repository, or a SHA-256 over its weight files; of a new model "new" and the
            beginning of a SHA-256 over its shape.
        vocabulary: tokens that the tokenizer knows.
        tokenizer: SHA-256 over what decides about the tokens of a text.
        parameters: of the trained model, without what methods own.
        dropout: probabilities in force, by kind.
        learning_rate: peak, as used.
        coefficients: factor of the label loss and of each term.
        status: "done" or "failed".
        failure: one sentence, if failed.
        resumed_from_step: the step that a resumed run continued from.
        scores: metrics of the finished model by split; null where one is not a finite number.
        curve: measurements on the way and at the end.
        history: logged values by step; null where one was not a finite number.
        notices: what methods said about themselves.
        cost: what training took.
        versions: of Python and the packages that matter.
        hardware: processor, threads, accelerator.
        commit: as in `RunRecord`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    kind: Literal["pretraining"] = "pretraining"
    run_id: str
    config: dict[str, Any]
    metric: str
    data_fingerprints: dict[str, str]
    data: dict[str, Texts]
    data_notes: list[str]
    model_name: str
    model_revision: str
    vocabulary: int
    tokenizer: str
    parameters: int
    dropout: dict[str, float]
    learning_rate: float
    coefficients: dict[str, float]
    status: Literal["done", "failed"]
    failure: str | None = None
    resumed_from_step: int | None = None
    scores: dict[str, dict[str, float | None]]
    curve: list[Point]
    history: list[dict[str, float | None]]
    notices: list[str]
    cost: Cost
    versions: dict[str, str]
    hardware: dict[str, str | int]
    commit: str | None = None


def is_pretraining(folder: Path) -> bool:
    """Whether a folder holds the record of a pre-training run.

    Args:
        folder: of some run.
    """
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("kind") == "pretraining"


def read_pretraining(folder: Path) -> PretrainRecord:
    """The record of the pre-training run in a folder.

    Args:
        folder: of the run.
    Raises:
        StoreError: there is none that can be read.
    """
    path = folder / "record.json"
    try:
        return PretrainRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise StoreError(f"{folder} holds no record of a finished pre-training run.") from None
