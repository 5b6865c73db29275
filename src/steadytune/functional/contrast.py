"""Contrast inside a batch: what belongs together, and how much of the softmax mass it gets."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

Reduction = Literal["mean", "sum", "mean_valid"]


def positives(labels: Int[Tensor, " batch"], *, ignore_index: int = -100) -> Bool[Tensor, "batch batch"]:
    """Which pairs of a batch share a class; the diagonal and ignored rows are False.

    Args:
        labels: class of each example.
        ignore_index: rows with this label take part in no pair.
    Returns:
        Symmetric mask.
    """
    same = labels[:, None] == labels[None, :]
    valid = labels != ignore_index
    return (same & valid[:, None]).fill_diagonal_(False)


def supcon_loss(
    z: Float[Tensor, "batch dim"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """Negative log-share of the positives, in nats.

    The softmax of an anchor runs over every other example of the batch, positives included; the mean over positives
    is outside the logarithm. An anchor without a positive adds 0 and stays a negative for the others. A batch
    without any pair gives 0, connected to `z`, so that a backward pass reaches every parameter.

    Args:
        z: one vector per example; any scale, normalized here.
        labels: class of each example.
        temperature: τ > 0; smaller weighs near neighbors more.
        reduction: "mean" over all examples, "sum" over them (eq. 3 as printed), or "mean_valid" over the anchors
            that have a positive; the weight of the term is not comparable across them.
        ignore_index: rows with this label are neither anchors nor positives nor negatives.
    Returns:
        Scalar, float32 or wider, differentiable in `z`.
    Raises:
        ValueError: `z` and `labels` differ in length, or `temperature` or `reduction` is out of range.

    Source: Gunel et al. 2021, eq. 3; Khosla et al. 2020, eq. 2.
    """
    if len(z) != len(labels):
        raise ValueError(f"z and labels must have the same length; got {len(z)} vectors and {len(labels)} labels.")
    if not temperature > 0:
        raise ValueError(f"temperature must be a number > 0; got {temperature}.")
    z = normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1, eps=1e-12)
    positive = positives(labels, ignore_index=ignore_index)
    valid = labels != ignore_index
    in_softmax = (valid[:, None] & valid[None, :]).fill_diagonal_(False)
    with torch.autocast(z.device.type, enabled=False):  # 8 bits of mantissa cost up to 75 % of the gradient
        logits = (z @ z.T / temperature).masked_fill(~in_softmax, torch.finfo(z.dtype).min)
    share = logits.log_softmax(dim=-1).masked_fill(~positive, 0.0).sum(dim=-1)
    per_anchor = -share / positive.sum(dim=-1).clamp(min=1)  # an anchor without positives adds 0, not 0/0
    match reduction:
        case "sum":
            return per_anchor.sum()
        case "mean":
            return per_anchor.sum() / valid.sum().clamp(min=1)
        case "mean_valid":
            return per_anchor.sum() / positive.any(dim=-1).sum().clamp(min=1)
    raise ValueError(f"reduction must be 'mean', 'sum' or 'mean_valid'; got {reduction!r}.")


def nt_xent_loss(
    a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], *, temperature: float
) -> Float[Tensor, ""]:
    """Negative log-share of each vector's partner in the other view, in nats, mean over all 2N vectors.

    The softmax of an anchor runs over the 2N − 1 other vectors of both views. One pair alone gives 0, connected to
    both views.

    Args:
        a: one vector per example; any scale, normalized here.
        b: the other view of the same examples.
        temperature: τ > 0; smaller weighs near neighbors more.
    Returns:
        Scalar, float32 or wider, differentiable in both.
    Raises:
        ValueError: the views differ in length, or `temperature` is out of range.

    Source: Pan et al. 2022 (CAT), eq. 6; Chen et al. 2020 (SimCLR), eq. 1.
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must have the same length; got {len(a)} and {len(b)} vectors.")
    if not temperature > 0:
        raise ValueError(f"temperature must be a number > 0; got {temperature}.")
    views = torch.cat([a, b])
    views = normalize(views.to(torch.promote_types(views.dtype, torch.float32)), dim=-1, eps=1e-12)
    self_pair = torch.eye(len(views), dtype=torch.bool, device=views.device)
    with torch.autocast(views.device.type, enabled=False):
        logits = (views @ views.T / temperature).masked_fill(self_pair, torch.finfo(views.dtype).min)
    partner = torch.arange(len(views), device=views.device).roll(len(a))
    return cross_entropy(logits, partner, reduction="sum") / max(len(views), 1)
