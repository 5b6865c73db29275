"""What is refused when methods meet, or when their training begins."""

from collections.abc import Sequence

from torch import Tensor, nn

from steadytune.encoders import checkpointing
from steadytune.methods.contract import Method, MethodError


def check_moved(methods: Sequence[Method]) -> None:
    """Refuse what does not go with a step that is taken at other weights.

    Args:
        methods: the active ones.
    Raises:
        MethodError: with the methods that clash.
    """
    movers = [method.key for method in methods if method.moves_weights]
    if len(movers) > 1:
        raise MethodError(f"{' and '.join(movers)} both take the step at other weights; leave one out.")
    ahead = [method.key for method in methods if method.shared_vectors() is not None]
    if movers and ahead:
        raise MethodError(
            f"{movers[0]} takes every batch at weights of its own, so {ahead[0]}.gather_across_accumulation cannot "
            "contrast it with other batches; switch that off."
        )


def check_first(methods: Sequence[Method], model: nn.Module, *, attached: bool, surveyed: bool) -> None:
    """Refuse what only shows when training begins.

    Args:
        methods: the active ones.
        model: the wrapped one.
        attached: whether they know the optimizer.
        surveyed: whether they have seen the training rows.
    Raises:
        MethodError: with what is missing.
    """
    for method in methods:
        if method.acts_on_updates and not attached:
            raise MethodError(f"{method.key} acts in optimizer steps; call attach(optimizer) before training.")
        if method.wants_survey and not surveyed:
            raise MethodError(
                f"{method.key} looks at the training rows first; give their batches to survey() before training."
            )
        if method.early_gradient and checkpointing(model) == "reentrant":
            raise MethodError(
                f"{method.key} cannot act under re-entrant gradient checkpointing, which cuts its gradients; "
                "enable it with use_reentrant=False."
            )


def check_padding(methods: Sequence[Method], mask: Tensor | None, place: int) -> None:
    """Refuse batches in which the token that the head reads is padding.

    Args:
        methods: the active ones.
        mask: attention mask (..., tokens), if there is one.
        place: position of that token.
    Raises:
        MethodError: with the side to pad on.
    """
    if methods and mask is not None and mask.ndim in (2, 3) and not bool(mask[..., place].all()):
        raise MethodError(
            f"the token that the head reads (position {place}) is padding in some rows; pad on the other side "
            f"(tokenizer.padding_side = {'right' if place == 0 else 'left'!r})."
        )
