"""Tiny random models with a masked-LM head, and batches with masked places."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from tiny import tiny_batch, tiny_model

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "mpnet")
"""Every family that has such a head."""

MASK = 3


def tiny_masked_model(family: str, *, dropout: float = 0.1, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model in training mode, its weights larger than those of a fresh one."""
    config = tiny_model(family, dropout=dropout, depth=2).config
    loader: Any = AutoModelForMaskedLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = loader.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model.to(dtype).train()


def masked_batch(family: str, *, rows: int = 4, padded: bool = True) -> dict[str, Tensor]:
    """Rows with 1, 2, 3, 0, 1, ... masked places, and padding."""
    batch = tiny_batch(family, rows=rows, padded=padded)
    labels = torch.full_like(batch["input_ids"], -100)
    for row in range(rows):
        for place in range(1, 1 + (row + 1) % 4):
            labels[row, place] = batch["input_ids"][row, place]
            batch["input_ids"][row, place] = MASK
    return {**batch, "labels": labels}
