"""Scores of a trained model on robustness sets: accuracy, by group, and consistency over contrast sets."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steadytune.data import Examples, PaddingCollator
from steadytune.data.checks import repeated_rows
from steadytune.data.robustness import RobustnessRows, RobustnessSet, read_robustness_sets
from steadytune.encoders.bundled import met_texts
from steadytune.recipes import RunConfig
from steadytune.records import GroupScores, RobustnessScores
from steadytune.tasks import Classification, Task
from steadytune.training.inference import Predicted, predict
from steadytune.training.loading import RunError
from steadytune.training.prepare import Prepared

logger = logging.getLogger("steadytune")


def robustness_rows(wanted: Sequence[RobustnessSet], task: Task, own: Examples) -> list[RobustnessRows]:
    """The rows of robustness sets, for a model of this task.

    Args:
        wanted: which.
        task: of the model.
        own: rows like those that it was trained on.
    Raises:
        RunError: the task has no robustness sets.
        DataError: a set cannot be read, or does not fit the task.
    """
    if not wanted:
        return []
    if not isinstance(task, Classification):
        raise RunError(f"robustness sets are for classification; this is {task.name}, so leave them out.")
    return read_robustness_sets(wanted, task.label_names, pairs=own.pairs is not None)


def tally(
    asked: RobustnessRows, predicted: Sequence[int], own: tuple[Sequence[int], Sequence[int]]
) -> RobustnessScores:
    """What predictions come to.

    Args:
        asked: the set.
        predicted: class of the model for each of its rows.
        own: predicted and true classes of the model's own rows; two empty lists if there are none.

    Source: McCoy et al. 2019: the likeliest class is taken first and merged afterwards.
    """
    right = [asked.classes[one] == label for one, label in zip(predicted, asked.labels, strict=True)]
    groups = []
    for column, values in asked.slices.items():
        members: dict[str, list[bool]] = defaultdict(list)
        for value, one in zip(values, right, strict=True):
            members[value].append(one)
        groups += [
            GroupScores(column=column, name=name, rows=len(found), accuracy=sum(found) / len(found))
            for name, found in sorted(members.items())
        ]
    whole: dict[str, bool] = {}
    for name, one in zip(asked.sets or [], right, strict=asked.sets is not None):
        if name is not None:
            whole[name] = whole.get(name, True) and one
    same = [asked.classes[one] == asked.classes[label] for one, label in zip(*own, strict=True)]
    return RobustnessScores(
        rows=len(right),
        left_out=asked.left_out,
        accuracy=sum(right) / len(right),
        own_accuracy=sum(same) / len(same) if same else None,
        majority=max(Counter(asked.labels).values()) / len(right),
        groups=groups,
        sets=len(whole) if whole else None,
        consistency=sum(whole.values()) / len(whole) if whole else None,
        fingerprint=replace(asked.rows, labels=asked.labels).fingerprint(),
        notes=list(asked.notes),
    )


def score_sets(
    sets: Sequence[RobustnessRows],
    network: Any,
    task: Task,
    tokenizer: Any,
    *,
    max_length: int,
    batch_size: int,
    own: tuple[Sequence[int], Sequence[int]] = ((), ()),
    encoder: str | None = None,
) -> dict[str, RobustnessScores]:
    """Scores by the name of the set; one whose predictions are not finite is left out, with a warning.

    Args:
        sets: from `robustness_rows`.
        network: the trained model.
        task: of the model.
        tokenizer: of the model.
        max_length: tokens of a row.
        batch_size: rows of one forward pass.
        own: see `tally`.
        encoder: as a run names the one that the model started from; None if unknown.
    """
    found = {}
    collator = PaddingCollator(tokenizer, task.label_dtype)
    for asked in sets:
        encoded = task.encode(asked.rows, tokenizer, max_length)
        predicted = predict(network, task, encoded, collator, batch_size)
        if not predicted.finite:
            logger.warning("%s is left out: the model gives scores that are not finite.", asked.name)
            continue
        scores = tally(asked, classes_of(predicted), own)
        cut = [f"{encoded.truncated_rows} rows cut to {max_length} tokens"] if encoded.truncated_rows else []
        known = met_texts(encoder, asked.origin)
        found[asked.name] = scores.model_copy(update={"notes": [*scores.notes, *cut, *known]})
    return found


def classes_of(predicted: Predicted) -> list[int]:
    """The likeliest class of each row.

    Args:
        predicted: by a classifier.
    """
    return [int(one) for one in np.argmax(predicted.rows, axis=-1)]


def score_run(
    sets: Sequence[RobustnessRows], config: RunConfig, ready: Prepared, test: Predicted | None
) -> dict[str, RobustnessScores]:
    """Scores of a run's trained model, with notes on rows that it has met.

    Args:
        sets: from `robustness_rows`.
        config: of the run.
        ready: its rows and its model.
        test: predictions for its test rows; None if they were not scored.
    """
    if not sets:
        return {}
    own = ((), ()) if test is None else (classes_of(test), ready.selection.test.labels or ())
    found = score_sets(
        sets,
        ready.model,
        ready.task,
        ready.tokenizer,
        max_length=config.run.max_length,
        batch_size=config.run.eval_batch_size,
        own=own,
        encoder=config.model,
    )
    for asked in sets:
        if asked.name in found:
            met = repeated_rows(asked.rows, ready.selection.train)
            found[asked.name] = found[asked.name].model_copy(update={"met": met})
    return found
