"""What the straight lines of methods that move embeddings share: a pass from given embeddings, and balls in loops."""

from typing import Any

import torch
from torch import Tensor

from equivalence.straight_line import Seen, forward


def looked_up(model: Any, data: dict[str, Tensor]) -> Tensor:
    """The word embeddings of a batch, with their way back to the matrix."""
    found: Tensor = model.bert.embeddings.word_embeddings.weight[data["input_ids"]]
    return found


def from_embedded(model: Any, data: dict[str, Tensor], embedded: Tensor, **more: Any) -> Seen:
    """A whole pass from these word embeddings."""
    places = torch.arange(data["input_ids"].numel()).view(data["input_ids"].shape)
    return forward(model, {**data, "input_ids": places}, words=embedded.flatten(0, 1), **more)


def gradient_at(value: Tensor, embedded: Tensor) -> Tensor:
    """Of a scalar at word embeddings; its graph stays."""
    (found,) = torch.autograd.grad(value, embedded, retain_graph=True)
    return found


def lengths(data: dict[str, Tensor]) -> list[int]:
    return [int(row.sum()) for row in data["attention_mask"]]


def typical(example: Tensor, norm: str) -> Tensor:
    """Mean norm of the tokens of one text without its padding."""
    tokens = [token.norm() if norm == "l2" else token.abs().max() for token in example.detach()]
    return torch.stack(tokens).mean()


def unit_direction(example: Tensor, norm: str) -> Tensor:
    """Of length one for a text, or with a largest entry of one for each of its tokens."""
    if norm == "l2":
        return example / example.norm()
    return torch.stack([token / token.abs().max() for token in example])


def into_ball(example: Tensor, bound: Tensor | float, norm: str) -> Tensor:
    if norm == "linf":
        return torch.where(example.abs() > bound, example.sign() * bound, example)
    return example * min(1.0, float(bound / example.norm())) if example.any() else example
