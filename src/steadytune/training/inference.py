"""Predictions and sentence vectors of a trained model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steadytune.data.batching import PaddingCollator
from steadytune.encoders.families import describe
from steadytune.tasks import Encoded, Task


@dataclass(frozen=True)
class Predicted:
    """What a model makes of some rows.

    Attributes:
        rows: one entry per row, as its task gives them.
        finite: all scores are finite numbers.
    """

    rows: Any
    finite: bool


def predict(model: nn.Module, task: Task, rows: Encoded, collator: PaddingCollator, batch_size: int = 64) -> Predicted:
    """Predictions for every row, in the order of the rows; batches are made of items of like length.

    Args:
        model: a Hugging Face model with a task head; its mode is put back afterwards.
        task: reads its output.
        rows: tokenized rows.
        collator: pads a batch.
        batch_size: items of one forward pass.
    """
    scores = _read(model, rows, collator, batch_size, lambda output, batch: _scores(task, output, batch))
    return Predicted(task.by_row(scores, rows), all(np.isfinite(one).all() for one in scores))


def predict_with_pooled(
    model: nn.Module, task: Task, rows: Encoded, collator: PaddingCollator, batch_size: int = 64
) -> tuple[Predicted, np.ndarray]:
    """Predictions, and the vector that enters the linear map to the labels, of every row, from the same passes.

    Args:
        model: as in `predict`, not wrapped.
        task: one with one vector per row (`whole_text`).
        rows: tokenized rows.
        collator: pads a batch.
        batch_size: rows of one forward pass.
    Returns:
        Predictions; vectors (rows, dim), float32.
    Raises:
        SiteUnavailable: the model has no linear map to labels.
    """
    parts = describe(model)
    parts.require("pooled", "predict_with_pooled")
    assert parts.label_linear is not None
    seen: list[Tensor] = []
    handle = parts.label_linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def both(output: Any, batch: Mapping[str, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
        vectors = seen.pop().float().cpu().numpy()
        return list(zip(_scores(task, output, batch), vectors, strict=True))

    try:
        found = _read(model, rows, collator, batch_size, both)
    finally:
        handle.remove()
    scores = [one for one, _ in found]
    finite = all(np.isfinite(one).all() for one in scores)
    return Predicted(task.by_row(scores, rows), finite), np.stack([vector for _, vector in found])


def _scores(task: Task, output: Any, batch: Mapping[str, Tensor]) -> list[np.ndarray]:
    return task.item_scores(output, batch["attention_mask"])


def _read(
    model: nn.Module,
    rows: Encoded,
    collator: PaddingCollator,
    batch_size: int,
    values: Callable[[Any, Mapping[str, Tensor]], list[Any]],
) -> list[Any]:
    """One value per item of every forward pass in evaluation mode."""
    order = np.argsort(rows.lengths, kind="stable")[::-1]
    device = next(model.parameters()).device
    found: list[Any] = [None] * len(order)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                places = [int(place) for place in order[start : start + batch_size]]
                batch: dict[str, Any] = collator([rows[place] for place in places])
                inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
                for place, value in zip(places, values(model(**inputs), inputs), strict=True):
                    found[place] = value
    finally:
        model.train(was_training)
    return found
