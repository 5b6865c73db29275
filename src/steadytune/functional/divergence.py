"""How far two predictions are apart."""

import torch
from jaxtyping import Float
from torch import Tensor


def symmetric_kl(one: Float[Tensor, "batch classes"], other: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """½ KL(p ‖ q) + ½ KL(q ‖ p) of two softmax distributions, in nats, mean over the batch.

    Computed as ½ Σ (p − q)(log p − log q), which is exactly 0 for equal scores; an empty batch gives 0.

    Args:
        one: scores before the softmax.
        other: scores before the softmax.
    Returns:
        Scalar, float32 or wider, differentiable in both.

    Source: Wu et al. 2023 (ASA), released code; Jiang et al. 2020 (SMART), eq. 3, there the sum of the two.
    """
    dtype = torch.promote_types(one.dtype, torch.float32)
    log_p, log_q = one.to(dtype).log_softmax(dim=-1), other.to(dtype).log_softmax(dim=-1)
    per_example = 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)
    return per_example.sum() / max(len(per_example), 1)


def directed_kl(one: Float[Tensor, "batch classes"], other: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """KL(p ‖ q) of two softmax distributions, in nats, mean over the batch; an empty batch gives 0.

    Args:
        one: scores of p before the softmax.
        other: scores of q before the softmax.
    Returns:
        Scalar, float32 or wider, differentiable in both.

    Source: Miyato et al. 2018 (VAT), eq. 5, with p held constant by the caller.
    """
    dtype = torch.promote_types(one.dtype, torch.float32)
    log_p, log_q = one.to(dtype).log_softmax(dim=-1), other.to(dtype).log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum() / max(len(log_p), 1)
