"""The record of one run."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Cost(BaseModel):
    """What training took.

    Attributes:
        optimizer_steps: steps of the optimizer.
        forward_passes: whole forward passes, resumed ones by their share of the layers.
        pass_units: forward, activation-gradient and weight-gradient traversals; 3 per batch is plain fine-tuning.
        tokens: tokens in the training batches, padding included, counted once per batch.
        train_seconds: wall time of training in the process that finished it, evaluation excluded.
        evaluate_seconds: wall time of scoring the trained model; null in records of older versions.
        peak_memory_bytes: largest resident memory of the process (CPU) or of its device.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer_steps: int
    forward_passes: float
    pass_units: float
    tokens: int
    train_seconds: float
    evaluate_seconds: float | None = None
    peak_memory_bytes: int


class GroupScores(BaseModel):
    """How some rows of a robustness set were answered.

    Attributes:
        column: by which rows are told apart.
        name: its value in these rows.
        rows: how many.
        accuracy: share answered rightly; 1 minus it is a CheckList failure rate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    name: str
    rows: int
    accuracy: float


class RobustnessScores(BaseModel):
    """How a trained model answered a robustness set; nothing is chosen by it.

    Attributes:
        rows: that were scored.
        left_out: rows with a label that the model has no class for.
        accuracy: share answered rightly.
        own_accuracy: on the run's own rows, with classes merged as for the set; null if it was not scored on them.
        majority: share of the most frequent label, which a constant answer scores.
        groups: parts of the rows, by column and value.
        sets: number of contrast sets, or of originals with all their revisions; null where rows stand alone.
        consistency: share of these with every row answered rightly.
        met: rows that stand among the training rows, but for case and white space; null where nobody looked.
        fingerprint: SHA-256 of the rows.
        notes: what was matched, merged, left out or noticed.

    Source: Gardner et al. 2020, §2.3, for consistency; Ribeiro et al. 2020, §2, for failure rates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    left_out: int = 0
    accuracy: float
    own_accuracy: float | None = None
    majority: float
    groups: list[GroupScores] = []
    sets: int | None = None
    consistency: float | None = None
    met: int | None = None
    fingerprint: str
    notes: list[str] = []


class RunRecord(BaseModel):
    """A finished or failed run; enough to remake every number of a report.

    Attributes:
        schema_version: of this layout.
        run_id: content hash of the configuration and the data.
        config: the run file, verbatim.
        task: name of the task.
        metric: the score that decides, higher is better.
        label_names: in the order of their indices.
        data_fingerprints: SHA-256 of each split's rows.
        protocol_hash: content hash of how rows were drawn and changed, and of the rows that this gave; null if unknown.
        data_rows: rows of each split.
        data_notes: what was inferred or noticed in the data.
        model_name: the encoder.
        model_revision: commit of its hub repository, or a SHA-256 over its weight files.
        dropout: probabilities in force, by kind.
        learning_rate: peak, as used.
        coefficients: factor of the label loss and of each term.
        status: "done" or "failed".
        failure: one sentence, if failed.
        resumed_from_step: the step that a resumed run continued from.
        scores: metrics by split; null where one is not a finite number.
        history: logged values by step; null where one was not a finite number.
        notices: what methods said about themselves.
        cost: what training took; null if it failed before the end.
        versions: of Python and the packages that matter.
        hardware: processor, threads, accelerator.
        cell: its place in a study: task, protocol, recipe, seed, budget, role; null for a single run.
        robustness: scores on further sets, by their names; empty if none were asked for, or if training diverged.
        commit: of the working tree that steadytune ran from, and whether it was changed; null for an installed package.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    run_id: str
    config: dict[str, Any]
    task: str
    metric: str
    label_names: list[str]
    data_fingerprints: dict[str, str]
    protocol_hash: str | None = None
    data_rows: dict[str, int]
    data_notes: list[str]
    model_name: str
    model_revision: str
    dropout: dict[str, float]
    learning_rate: float
    coefficients: dict[str, float]
    status: Literal["done", "failed"]
    failure: str | None = None
    resumed_from_step: int | None = None
    scores: dict[str, dict[str, float | None]]
    history: list[dict[str, float | None]]
    notices: list[str]
    cost: Cost | None
    versions: dict[str, str]
    hardware: dict[str, str | int]
    commit: str | None = None
    cell: dict[str, str | int] | None = None
    robustness: dict[str, RobustnessScores] = {}
