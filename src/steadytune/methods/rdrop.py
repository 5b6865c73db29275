"""Two passes of one batch that differ in their dropout, held to the same prediction. Card: rdrop.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadytune.encoders import Anatomy
from steadytune.methods.contract import Method, MethodError, Mix, Step, setting

_NEARLY_EQUAL = 1e-9  # nats; noise of 1e-5 without any dropout leaves 3.5e-12, dropout of 0.1 about 5e-3 (rdrop.md)


@dataclass(frozen=True, kw_only=True)
class RDrop(Method):
    """Label loss on two passes with independent dropout, and the divergence between them (Liang et al. 2021)."""

    key: ClassVar[str] = "rdrop"
    mix: ClassVar[Mix] = "additive"

    weight: float = setting(
        0.5, "a, factor of the divergence; half of the paper's α", low=0, source="alpha 1 in HyPe's grid, halved"
    )

    @property
    def active(self) -> bool:
        """Always: without divergence it is the label loss on two dropout draws."""
        return True

    def label_passes(self) -> tuple[str, ...]:
        """Both passes carry the label loss with equal weight."""
        return ("clean", "rdrop")

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""] | None:
        """½ KL(p₁ ‖ p₂) + ½ KL(p₂ ‖ p₁), or the squared difference in regression; the gradient flows through both.

        Args:
            step: gives the passes.
            state: nothing.
        Raises:
            MethodError: nothing makes the two passes differ.
        """
        one, two = step.clean.logits, step.run("rdrop", kind="label").logits
        assert one is not None and two is not None
        if step.first and torch.equal(one, two):
            raise MethodError(_no_difference(step.anatomy))
        divergence = step.task.divergence(one, two)
        step.report("divergence", divergence)
        return divergence if self.weight > 0 else None

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when the two passes are the same but for rounding.

        Args:
            telemetry: means by name.
        """
        divergence = telemetry.get("divergence")
        if divergence is None or divergence >= _NEARLY_EQUAL:
            return []
        return [
            f"rdrop: its two passes diverge by only {divergence:.1e} nats, so its term does nothing at twice the cost; "
            "switch dropout on."
        ]


def _no_difference(parts: Anatomy) -> str:
    zero = [kind for kind, rate in parts.dropout.items() if rate == 0]
    reason = f"dropout is 0 for {', '.join(zero)}" if zero else "its dropout modules do not drop anything"
    return (
        f"rdrop cannot act on this {parts.family.name}: its two passes have equal scores, because {reason}; load the "
        "model with dropout, or leave rdrop out."
    )
