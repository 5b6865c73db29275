"""Steps whose gradient is taken where the loss nearby is highest. Card: sam.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steadytune.methods.contract import Context, Method, MethodError, Step, setting

_HALF = (torch.bfloat16, torch.float16)


def ascent(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], radius: float, *, adaptive: bool = False
) -> dict[str, Tensor]:
    """The step of a given length along which a loss rises most, to first order.

    Args:
        weights: w, by name.
        gradients: g, by name of the weights that have one.
        radius: ρ, length of the step; if `adaptive`, of the step in units of each weight's size.
        adaptive: measure every weight's step by its size.
    Returns:
        ρ g / ‖g‖, or ρ w² g / ‖ |w| g ‖, by name; float32 or wider; 0 if the gradient is 0, or if any of it is not
        finite.

    Source: Foret et al. 2021, equation 2; adaptive: Kwon et al. 2021.
    """
    wide = {name: g.to(torch.promote_types(g.dtype, torch.float32)) for name, g in gradients.items()}
    if adaptive:
        wide = {name: g * weights[name].detach().abs() for name, g in wide.items()}
    # in units of the largest entry, or the squares of very large and very small ones would be lost
    peak = torch.stack([g.abs().amax() for g in wide.values()]).amax()
    usable = peak.isfinite() & (peak > 0)
    wide = {name: g / torch.where(usable, peak, 1.0) for name, g in wide.items()}
    factor = radius / torch.stack([g.square().sum() for g in wide.values()]).sum().sqrt()
    if adaptive:
        wide = {name: g * weights[name].detach().abs() for name, g in wide.items()}
    return {name: torch.where(usable, factor * g, 0.0) for name, g in wide.items()}


@dataclass(frozen=True, kw_only=True)
class SAM(Method):
    """Sharpness-aware minimization of the whole loss, one ascent per batch (Foret et al. 2021)."""

    key: ClassVar[str] = "sam"

    rho: float = setting(0.05, "ρ, length of the ascent in the space of weights", low=0, source="Foret 2021, vision")
    adaptive: bool = setting(
        False, "ASAM: lengths in units of each weight's size; ρ is then about ten times larger", source="Foret 2021"
    )
    direction: Literal["gradient", "random"] = setting(
        "gradient", "up the loss, or by chance and as far", source="Foret 2021"
    )

    @property
    def active(self) -> bool:
        """Whether the weights move."""
        return self.rho > 0

    def check(self, context: Context) -> None:
        """Refuse checkpointed layers, and weights that round the ascent away.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: with the reason.
            SiteUnavailable: gradient checkpointing is on.
        """
        context.anatomy.require("weights", self.key)
        if any(p.dtype in _HALF for p in context.model.parameters() if p.requires_grad):
            raise MethodError(
                "sam cannot act on 16-bit weights, which round the ascent away; use float32 weights, with autocast if "
                "need be."
            )

    def moved_weights(
        self, step: Step, weights: Mapping[str, Tensor], gradients: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """w + e; the gradient that arrives at w + e is the gradient at w.

        Args:
            step: takes telemetry.
            weights: w, by name.
            gradients: of the whole loss at w.
        """
        found: Mapping[str, Tensor]
        if self.direction == "gradient":
            found = gradients()
        else:
            generator = step.generator("direction")
            found = {name: torch.empty_like(w).normal_(generator=generator) for name, w in weights.items()}
        offsets = ascent(weights, found, self.rho, adaptive=self.adaptive)
        length = torch.stack([e.square().sum() for e in offsets.values()]).sum().sqrt()
        whole = torch.stack([w.detach().square().sum() for w in weights.values()]).sum().sqrt()
        step.report("length", length)
        step.report("still_fraction", (length == 0).float())
        step.report("relative_length", length / whole)
        return {name: weights[name] + offset.to(weights[name].dtype) for name, offset in offsets.items()}

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when the weights did not move.

        Args:
            telemetry: means by name.
        """
        still = telemetry.get("still_fraction", 0.0)
        if still == 0:
            return []
        return [
            f"sam: in {still:.1%} of the steps the gradient of the loss was 0 or not finite, so they were taken at the "
            "weights as they were."
        ]
