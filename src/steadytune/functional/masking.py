"""Learned masks: a hard choice forwards, a gradient for an adversary backwards."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_HIDDEN = -1e4  # exp of it is 0 in every dtype, and float16 holds it


class _ReversedMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, free: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(scores, free)
        ctx.gain = gain
        bias = torch.zeros_like(scores).masked_fill_(free & (scores <= 0), _HIDDEN)
        return bias, (free & (scores > 0)).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scores, free = ctx.saved_tensors
        of_bias, of_kept = gradients
        share = scores.sigmoid()
        return torch.where(free, -share * (1 - share) * (ctx.gain * of_bias + of_kept), 0.0), None, None


def reversed_mask(
    scores: Float[Tensor, "batch tokens tokens"], free: Bool[Tensor, "batch tokens tokens"], *, gain: float
) -> tuple[Float[Tensor, "batch 1 tokens tokens"], Float[Tensor, "batch tokens tokens"]]:
    """The attention mask of an adversary that maximizes what everything else minimizes.

    A free unit (query, key) is kept if its score is above 0, else masked. Backwards, with m the choice,
    ∂J/∂s = −σ(s)(1 − σ(s)) (gain · Σ_heads ∂J/∂bias + ∂J/∂kept): straight through a sigmoid, and reversed.

    Args:
        scores: s, what the adversary thinks of each unit.
        free: units that may be masked; the others stay as they are and get no gradient.
        gain: G, scale of the gradient that arrives at the bias; apart from the −10,000 that hides a unit.
    Returns:
        Bias to add to the attention scores, 0 or −10,000; and 1 for each free unit that is kept, 0 for any other.

    Source: Wu et al. 2023 (ASA), released code, without its noise, which cancels; there the gain is the mask constant.
    """
    bias, kept = _ReversedMask.apply(scores, free, gain)  # type: ignore[no-untyped-call]
    return bias[:, None], kept
