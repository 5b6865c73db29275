"""Texts mixed inside the encoder, and their labels with them. Card: tmix.md."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from steadytune.encoders import Edits
from steadytune.methods.contract import Context, Method, MethodError, Mixture, Step, setting


@dataclass(frozen=True, kw_only=True)
class TMix(Method):
    """Train on mixtures of two texts' hidden states and labels (Verma et al. 2019; Chen, Yang and Yang 2020)."""

    key: ClassVar[str] = "tmix"

    alpha: float = setting(
        16.0, "α of Beta(α, α), from which a batch draws its share λ", low=0, open_low=True, source="Chen 2020, code"
    )
    mix_layers: tuple[int, ...] | None = setting(
        None, "layers at whose entrance to mix, one drawn per batch; null: 7/12 and 9/12 up", source="Chen 2020, code"
    )
    fold: bool = setting(False, "λ ← max(λ, 1 − λ), so that a text keeps the larger share", source="Chen 2020, code")
    states: bool = setting(True, "mix the states too, not only the labels", source="Chen 2020")

    def check(self, context: Context) -> None:
        """Refuse layers that are not there, and models whose masks cannot be joined.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: with the reason.
            SiteUnavailable: layers take no common mask.
        """
        if not context.task.whole_text:
            raise MethodError(
                f"tmix cannot act on a {context.task.name} task: it mixes texts that have one label each; leave it out."
            )
        depth = context.anatomy.depth
        if bad := [layer for layer in self._mixed(depth) if not 0 <= layer < depth]:
            raise MethodError(f"tmix.mix_layers must lie between 0 and {depth - 1} in this model; got {bad[0]}.")
        if not self._mixed(depth):
            raise MethodError("tmix.mix_layers must name at least one layer, or be null.")
        if self.states:
            context.anatomy.require("mask", self.key)
            if getattr(context.model.config, "classifier_pooling", "cls") == "mean":
                raise MethodError(
                    "tmix cannot mix states under a head that takes the mean over the tokens of a text, for it would "
                    "leave out those of the other text; load the model with classifier_pooling='cls'."
                )

    def _mixed(self, depth: int) -> list[int]:
        if self.mix_layers is not None:
            return sorted(set(self.mix_layers))
        return sorted({min(math.ceil(part * depth / 12), depth - 1) for part in (7, 9)})

    def label_passes(self) -> tuple[str, ...]:
        """The mixed pass carries the label loss, in place of the clean one."""
        return ("tmix",)

    def loss(self, step: Step, state: nn.Module | None) -> None:
        """Run the mixed pass; there is no term of its own.

        Args:
            step: gives the pass, the labels and a stream.
            state: unused.
        """
        generator = step.generator("partners")
        chance = random.Random(generator.initial_seed())
        share = chance.betavariate(self.alpha, self.alpha)
        share = max(share, 1 - share) if self.fold else share
        layer = chance.choice(self._mixed(step.anatomy.depth))
        mixture = Mixture(partners_of(step.labels, generator), share)
        edits = mixing(layer, mixture) if self.states else None
        step.run("tmix", edits=edits, dropout="as clean", kind="label", mixture=mixture)
        labelled = step.labels != -100
        same = (step.labels == step.labels[mixture.partners]) & labelled
        step.report("share", share)
        step.report("same_label", same.sum() / labelled.sum().clamp(min=1))

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when every text met only texts of its own label.

        Args:
            telemetry: means by name.
        """
        if telemetry.get("same_label") == 1:
            return ["tmix: every text was mixed with one of its own label, so labels did not mix; use larger batches."]
        return []


def partners_of(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation of the rows of a batch that takes labelled rows to labelled rows.

    Args:
        labels: one per row; -100 marks a row without one.
        generator: the stream to draw from.
    """
    without = (labels == -100).to(torch.float32)
    chance = torch.rand(labels.shape, generator=generator, device=labels.device)
    ordered, shuffled = without.argsort(stable=True), (chance + without).argsort()
    return torch.empty_like(ordered).scatter_(0, ordered, shuffled)


def mixing(layer: int, mixture: Mixture) -> Edits:
    """Edits that mix the states which enter a layer, and let every later layer attend to the tokens of both texts.

    Args:
        layer: where.
        mixture: which rows, and in which share.

    Source: Verma et al. 2019; Chen, Yang and Yang 2020 (TMix), with the union of both masks.
    """
    partners, share = mixture.partners, mixture.share

    def hidden(index: int, states: Tensor) -> Tensor:
        return share * states + (1 - share) * states[partners] if index == layer else states

    def mask(index: int, own: Tensor) -> Tensor:
        if index < layer or len(own) != len(partners):
            return own
        other = own[partners]
        return own | other if own.dtype == torch.bool else torch.maximum(own, other)

    return Edits(hidden=hidden, mask=mask)
