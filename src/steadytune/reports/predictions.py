"""What a run said about the rows of one split, and which of its answers are right."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

NO_CHOICE = float(np.finfo(np.float32).min) / 2
"""Score of a choice that a row does not have: it gets no probability."""

_SCORED = ("classification", "regression", "multiple_choice")  # tasks that choose or measure one thing of each row


class Answers(NamedTuple):
    """What a run answered; an answer is right if it equals the label.

    Attributes:
        ids: of the rows.
        labels: of each row: a class, or the place of a choice; the classes of a text, or the tags of its words; true
            for a question.
        given: likewise; for a question, whether the answer is an exact match.
    """

    ids: list[str]
    labels: list[Any]
    given: list[Any]

    @property
    def right(self) -> list[bool]:
        """Whether each row is."""
        return [label == given for label, given in zip(self.labels, self.given, strict=True)]


class Predictions(NamedTuple):
    """One row of scores for each row of the data.

    Attributes:
        ids: of the rows.
        labels: class, value, or place of the right choice.
        logits: (rows, classes), or of a regression (rows, 1); `NO_CHOICE` where a row has fewer choices than another.
    """

    ids: list[str]
    labels: np.ndarray
    logits: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether there are rows, and every score of them is a number."""
        return len(self.ids) > 0 and bool(np.isfinite(self.logits).all())

    @property
    def answers(self) -> Answers:
        """The likeliest class or choice of each row."""
        return Answers(self.ids, self.labels.tolist(), self.logits.argmax(axis=1).tolist())

    @property
    def choices(self) -> np.ndarray:
        """How many each row has."""
        return np.asarray((self.logits > NO_CHOICE).sum(axis=1))


def predictions_of(task: str, table: Any) -> Predictions | None:
    """Scores by row; None for a task that does not give one row of them for each row of the data.

    Args:
        task: name of the task.
        table: of one split, as a run wrote it.
    """
    if task not in _SCORED:
        return None
    return Predictions(table["id"].to_pylist(), table["label"].to_numpy(), matrix_of(table["logits"], np.float64))


def answers_of(task: str, table: Any) -> Answers | None:
    """Answers by row; None without rows, for scores that are not finite, and where no answer is right or wrong.

    Args:
        task: name of the task.
        table: of one split, as a run wrote it.
    """
    ids = table["id"].to_pylist()
    scores = predictions_of(task, table)
    if task == "regression" or not ids:
        return None
    if scores is not None:
        return scores.answers if scores.finite else None
    if task == "multi_label":
        logits = matrix_of(table["logits"], np.float64)
        given = [tuple(np.flatnonzero(row > 0).tolist()) for row in logits]
        return Answers(ids, _tuples(table["label"]), given) if np.isfinite(logits).all() else None
    if task == "token_classification":
        return Answers(ids, _tuples(table["label"]), _tuples(table["predicted"]))
    if task == "question_answering" and "exact_match" in table.column_names:
        return Answers(ids, [True] * len(ids), table["exact_match"].to_pylist())
    return None


def matrix_of(column: Any, dtype: type) -> np.ndarray:
    """A column of lists as a matrix; a list that is shorter than others is filled up with `NO_CHOICE`.

    Args:
        column: of a table.
        dtype: of the matrix.
    """
    lengths = pa.compute.list_value_length(column).to_numpy()
    found = np.full((len(lengths), lengths.max(initial=0)), NO_CHOICE, dtype=dtype)
    found[np.arange(found.shape[1]) < lengths[:, None]] = pa.compute.list_flatten(column).to_numpy()
    return found


def _tuples(column: Any) -> list[tuple[int, ...]]:
    return [tuple(row) for row in column.to_pylist()]
