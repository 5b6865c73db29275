"""Scores and sentence vectors of a trained model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steadytune.data.batching import Encoded, PaddingCollator
from steadytune.encoders.families import describe


def predict_logits(model: nn.Module, rows: Encoded, collator: PaddingCollator, batch_size: int = 64) -> np.ndarray:
    """Logits of every row, in the order of the rows; batches are made of rows of like length.

    Args:
        model: a Hugging Face model with a task head; its mode is put back afterwards.
        rows: tokenized rows.
        collator: pads a batch.
        batch_size: rows of one forward pass.
    Returns:
        (rows, outputs), float32.
    """
    return _read(model, rows, collator, batch_size, lambda output: output.logits)


def predict_with_pooled(
    model: nn.Module, rows: Encoded, collator: PaddingCollator, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the vector that enters the linear map to them, of every row, from the same forward passes.

    Args:
        model: as in `predict_logits`, not wrapped.
        rows: tokenized rows.
        collator: pads a batch.
        batch_size: rows of one forward pass.
    Returns:
        (rows, outputs) and (rows, dim), float32.
    Raises:
        SiteUnavailable: the model has no linear map to labels.
    """
    parts = describe(model)
    parts.require("pooled", "predict_with_pooled")
    assert parts.label_linear is not None
    seen: list[Tensor] = []
    handle = parts.label_linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        both = _read(model, rows, collator, batch_size, lambda output: torch.cat([output.logits, seen.pop()], dim=1))
    finally:
        handle.remove()
    outputs = parts.label_linear.out_features
    return both[:, :outputs], both[:, outputs:]


def _read(
    model: nn.Module, rows: Encoded, collator: PaddingCollator, batch_size: int, value: Callable[[Any], Tensor]
) -> np.ndarray:
    """One value per row of every forward pass in evaluation mode."""
    order = np.argsort(rows.lengths, kind="stable")[::-1]
    device = next(model.parameters()).device
    parts: list[np.ndarray] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                batch: dict[str, Any] = collator([rows[int(i)] for i in order[start : start + batch_size]])
                inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
                parts.append(value(model(**inputs)).float().cpu().numpy())
    finally:
        model.train(was_training)
    ordered = np.concatenate(parts)
    result = np.empty_like(ordered)
    result[order] = ordered
    return result
