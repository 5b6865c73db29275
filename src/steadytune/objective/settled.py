"""Weight gradients that were computed ahead of a step's backward pass, and take effect in it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from steadytune.encoders import PassOutput


class _Settled(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradients[0] * known for known in ctx.gradients)


def settle(
    loss: Tensor,
    output: PassOutput,
    wrt: Callable[[PassOutput], Tensor],
    parameters: Iterable[nn.Parameter],
    *,
    lift: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Back-propagate a loss now: its graph is freed, and its weight gradients wait for the step's backward.

    Args:
        loss: of one pass, with its graph.
        output: the pass.
        wrt: the recorded value whose gradient is wanted too.
        parameters: of the model; those without a gradient are left alone.
        lift: factor of the loss while it is back-propagated, taken back afterwards.
    Returns:
        The gradient with respect to the recorded value; and the loss, whose backward gives the weights theirs.
    """
    value, trained = wrt(output), [parameter for parameter in parameters if parameter.requires_grad]
    gradient, *found = torch.autograd.grad(lift * loss, [value, *trained], allow_unused=True)
    assert gradient is not None
    pairs = [(parameter, known) for parameter, known in zip(trained, found, strict=True) if known is not None]
    known = tuple(known / lift for _, known in pairs) if lift != 1 else tuple(known for _, known in pairs)
    waiting: Tensor = _Settled.apply(loss.detach(), known, *(parameter for parameter, _ in pairs))  # type: ignore[no-untyped-call]
    return gradient / lift, waiting
