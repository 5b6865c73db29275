"""Supervised contrastive term on the sentence vector. Card: scl.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadytune.encoders import VectorSource
from steadytune.functional import Reduction, positives, supcon_loss
from steadytune.methods.contract import Context, Method, MethodError, Mix, Step, setting


@dataclass(frozen=True, kw_only=True)
class SCL(Method):
    """Pull examples of one class together inside the batch, push all others away (Gunel et al. 2021)."""

    key: ClassVar[str] = "scl"
    mix: ClassVar[Mix] = "convex"

    weight: float = setting(0.9, "λ, share of this term in the convex mix", low=0, high=1, source="Gunel 2021, §4")
    temperature: float = setting(0.3, "τ, divides cosine similarities", low=0, open_low=True, source="Gunel 2021, §4")
    reduction: Reduction = setting("mean", "over all anchors, their sum, or those with a positive", source="derived")
    pooled_source: VectorSource = setting("cls", "vector that is contrasted", source="Gunel 2021, §3")
    gather_across_devices: bool = setting(False, "pairs over all processes", source="derived")
    gather_across_accumulation: bool = setting(False, "pairs over all accumulated batches", source="derived")

    def check(self, context: Context) -> None:
        """Refuse tasks without classes and models with nothing to train below the head.

        Args:
            context: model, task and processes.
        """
        if not context.task.has_classes:
            raise MethodError(
                f"scl cannot act on a {context.task.name} task: it pairs examples of equal class, and here an "
                "example does not have one class."
            )
        if not context.trainable:
            raise MethodError("scl cannot act on a frozen encoder: its term trains only what lies below the head.")
        if self.pooled_source == "label_input":
            context.anatomy.require("pooled", "scl")

    def shared_vectors(self) -> VectorSource | None:
        """The contrasted vectors, if pairs run over all accumulated batches."""
        return self.pooled_source if self.gather_across_accumulation else None

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""]:
        """The contrast over the group of rows; see `supcon_loss`.

        Args:
            step: gives the clean pass and the labels.
            state: unused.
        """
        vectors, labels = step.group(
            step.clean.vector(self.pooled_source),
            step.labels,
            source=self.pooled_source,
            devices=self.gather_across_devices,
            accumulation=self.gather_across_accumulation,
        )
        if len(labels) < 3:
            step.notice(
                f"scl has {len(labels)} row(s) to pair, which gives a loss of 0; use a larger batch per device, "
                "or gather_across_devices or gather_across_accumulation."
            )
        loss = supcon_loss(vectors, labels, temperature=self.temperature, reduction=self.reduction)
        self._report(step, loss, labels)
        return loss

    def _report(self, step: Step, loss: Tensor, labels: Tensor) -> None:
        per_anchor = positives(labels).sum(dim=-1)
        has_positive = per_anchor > 0
        anchors = (labels != -100).sum().clamp(min=1)
        floors = torch.where(has_positive, per_anchor.clamp(min=1).log(), 0.0)
        step.report("anchors_with_positive_fraction", has_positive.sum() / anchors)
        step.report("positives_per_anchor", per_anchor.sum() / anchors)
        count = {"sum": torch.ones_like(anchors), "mean": anchors, "mean_valid": has_positive.sum().clamp(min=1)}
        step.report("above_floor", loss.detach() - floors.sum() / count[self.reduction])

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when most anchors found no positive.

        Args:
            telemetry: means by name.
        """
        share = telemetry.get("anchors_with_positive_fraction", 1.0)
        if share >= 0.5:
            return []
        return [
            f"scl: only {share:.0%} of the anchors have a positive in their batch, so most of its term pushes apart "
            "and pulls nothing together; use the class-balanced sampler (run.examples_per_class: 2 or more), a larger "
            "batch, or a smaller weight."
        ]
