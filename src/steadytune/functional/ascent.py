"""Steps that increase a loss: perturbations from a gradient."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Norm = Literal["l2", "linf"]


def by_token(
    values: Float[Tensor, "batch tokens dim"], token_ids: Int[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, "slots dim"], Int[Tensor, "batch tokens"]]:
    """Sum over all occurrences of each token id: the gradient of an embedding matrix, without the matrix.

    There are as many slots as positions, so that nothing waits for the number of distinct ids; slots without an id
    are 0.

    Args:
        values: one vector per position, e.g. a gradient with respect to the looked-up embeddings.
        token_ids: what was looked up.
    Returns:
        The sums, and for each position its slot, so that `sums[slots]` spreads a value per id over its occurrences.

    Source: the chain rule for a lookup; Pan et al. 2022 (CAT), eq. 2 with respect to the matrix.
    """
    ordered, order = token_ids.flatten().sort()
    begins = torch.ones_like(ordered)
    begins[1:] = ordered[1:] != ordered[:-1]
    slots = torch.empty_like(order).scatter_(0, order, begins.cumsum(0) - 1)
    sums = torch.zeros_like(values.flatten(0, 1)).index_add_(0, slots, values.flatten(0, 1))
    return sums, slots.view_as(token_ids)


def ascent_step(gradient: Float[Tensor, "*shape"], epsilon: float, norm: Norm) -> Float[Tensor, "*shape"]:
    """The step of size ε that increases a loss most, to first order.

    Args:
        gradient: of the loss; one norm over the whole tensor.
        epsilon: ε, Euclidean length of the step ("l2") or size of every entry ("linf").
        norm: "l2" for ε g / ‖g‖ (Miyato et al. 2017), "linf" for ε sign(g) (Goodfellow et al. 2015).
    Returns:
        A constant, float32 or wider; 0 where the gradient is 0, and everywhere if it is not finite.

    Source: Pan et al. 2022 (CAT), eq. 3.
    """
    gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    length = gradient.norm()
    usable: Bool[Tensor, ""] = length.isfinite() & (length > torch.finfo(gradient.dtype).tiny)
    step = epsilon * gradient / length if norm == "l2" else epsilon * gradient.sign()
    return torch.where(usable, step, 0.0)
