"""Weights of the encoder's linear maps mixed at random with their pre-trained values. Card: mixout.md."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from steadytune.encoders import Edits
from steadytune.functional import draw_noise
from steadytune.methods.buffers import buffer_name
from steadytune.methods.contract import Context, Method, MethodError, Pass, setting

Unit = Literal["input", "element"]


def mix_weight(weight: Tensor, target: Tensor, kept: Tensor, probability: float) -> Tensor:
    """U + (W − U) k / (1 − p): exactly U where nothing is kept, W in expectation.

    Args:
        weight: W, one row per output.
        target: U, of the same shape, float32 or wider.
        kept: k, true where W counts; broadcasts against W.
        probability: p, with which an entry of k is false.
    Returns:
        The mixed weight, in the dtype of W.

    Source: Lee et al. 2020 (Mixout); their [k W + (1 − k) U − p U] / (1 − p), rearranged.
    """
    factors = kept.to(target.dtype) / (1 - probability)
    return (target + (weight - target) * factors).to(weight.dtype)


@dataclass(frozen=True, kw_only=True)
class Mixout(Method):
    """In every training pass, random inputs of each linear map see its pre-trained weights (Lee et al. 2020)."""

    key: ClassVar[str] = "mixout"

    probability: float = setting(
        0.7, "p, share of the pre-trained weights; below 1", low=0, high=1, source="Lee 2020, recalled, not re-read"
    )
    unit: Unit = setting(
        "input", "what is drawn: whole input neurons (mixout) or single weights (mixconnect)", source="Lee 2020"
    )

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0

    def check(self, context: Context) -> None:
        """Refuse p = 1, checkpointed layers, adapters, and layers with nothing to mix.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: with the reason.
            SiteUnavailable: gradient checkpointing is on.
        """
        if self.probability == 1:
            raise MethodError(
                "mixout.probability must be below 1: at 1 every linear map keeps its pre-trained weights."
            )
        if hasattr(context.model, "peft_config"):
            raise MethodError("mixout cannot act on a model with adapters: they have no pre-trained value.")
        context.anatomy.require("weights", "mixout")
        if not _mixed(context):
            raise MethodError("mixout cannot act here: no linear map inside the encoder's layers is trained.")

    def setup(self, context: Context) -> nn.Module:
        """The pre-trained weights U, one buffer each.

        Args:
            context: model, task and processes.
        """
        state = nn.Module()
        for name, weight in _mixed(context).items():
            state.register_buffer(buffer_name(name), weight.detach().clone())
        return state

    def edits(self, now: Pass) -> Edits | None:
        """Mixed weights in every pass but a teacher's; a replayed pass mixes in the same way.

        Args:
            now: the pass that is about to run.
        """
        if now.kind == "teacher":
            return None
        assert now.state is not None
        targets = dict(now.state.named_buffers())

        def mixed(name: str, weight: Tensor) -> Tensor:
            target = targets.get(buffer_name(name))
            return weight if target is None else self._mix(now, name, weight, target)

        return Edits(weights=mixed)

    def _mix(self, now: Pass, name: str, weight: Tensor, target: Tensor) -> Tensor:
        drawn = target[:1] if self.unit == "input" else target
        kept = draw_noise(drawn, 1.0, "uniform_released", now.generator("mask", name)) >= self.probability
        with torch.no_grad():
            now.report("pretrained_share", 1 - kept.to(target.dtype).mean())
            now.report("relative_distance", (weight - target).norm() / target.norm())
        return mix_weight(weight, target, kept, self.probability)


def _mixed(context: Context) -> dict[str, nn.Parameter]:
    """Trained weights of the linear maps inside the encoder's layers, by name."""
    maps = (m for layer in context.anatomy.layers for m in layer.modules() if isinstance(m, nn.Linear))
    inside = {id(module.weight) for module in maps}
    named = context.model.named_parameters()
    return {name: p for name, p in named if id(p) in inside and p.requires_grad}
