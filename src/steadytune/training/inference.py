"""Scores of a trained model."""

from typing import Any

import numpy as np
import torch
from torch import nn

from steadytune.data.batching import Encoded, PaddingCollator


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
    order = np.argsort(rows.lengths, kind="stable")[::-1]
    device = next(model.parameters()).device
    logits: list[np.ndarray] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                batch: dict[str, Any] = collator([rows[int(i)] for i in order[start : start + batch_size]])
                inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
                logits.append(model(**inputs).logits.float().cpu().numpy())
    finally:
        model.train(was_training)
    ordered = np.concatenate(logits)
    result = np.empty_like(ordered)
    result[order] = ordered
    return result
