"""Contrast between the clean pass and one with a perturbed word-embedding matrix. Card: cat.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadytune.encoders import Edits, PassOutput, VectorSource
from steadytune.functional import Norm, ascent_step, by_token, nt_xent_loss
from steadytune.methods.contract import Context, Method, MethodError, Mix, Step, setting
from steadytune.methods.offsets import check_precision, embedding_of


@dataclass(frozen=True, kw_only=True)
class CAT(Method):
    """Label loss on clean and perturbed embeddings, and a contrast that matches the two (Pan et al. 2022)."""

    key: ClassVar[str] = "cat"
    mix: ClassVar[Mix] = "convex"
    probes_embedding: ClassVar[bool] = True
    early_gradient: ClassVar[bool] = True

    weight: float = setting(0.3, "λ, share of the contrast in the convex mix", low=0, high=1, source="middle of a grid")
    temperature: float = setting(
        0.07, "τ, divides cosine similarities", low=0, open_low=True, source="middle of a grid"
    )
    epsilon: float = setting(0.02, "ε, size of the perturbation of the matrix", low=0, source="top of a grid")
    norm: Norm = setting("l2", "ε is the length of the whole step, or the size of every entry", source="derived")
    projection_dim: int = setting(300, "D_k, width of the projection head", low=1, source="public re-implementation")
    pooled_source: VectorSource = setting("cls", "vector that is projected", source="public re-implementation")
    perturb_special: bool = setting(True, "also the ids of first and last tokens", source="no exclusion in the paper")
    gather_across_devices: bool = setting(False, "negatives from all processes", source="derived")

    @property
    def active(self) -> bool:
        """Always: without contrast it is adversarial training, without perturbation a second dropout draw."""
        return True

    def check(self, context: Context) -> None:
        """Refuse models with nothing to train below the head.

        Args:
            context: model, task and processes.
        """
        if not context.trainable:
            raise MethodError(
                "cat cannot act on a frozen encoder: perturbed and clean pass differ only below the head."
            )
        if self.pooled_source == "label_input":
            context.anatomy.require("pooled", "cat")

    def setup(self, context: Context) -> nn.Module | None:
        """The projection head W2 relu(W1 h), shared by both passes; none without a contrast.

        Args:
            context: model, task and processes.
        """
        if self.weight == 0:
            return None
        head, width = context.anatomy.label_linear, context.anatomy.width
        if self.pooled_source == "label_input" and head is not None:
            width = head.in_features
        return nn.Sequential(
            nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, self.projection_dim, bias=False)
        )

    def label_passes(self) -> tuple[str, ...]:
        """Clean and perturbed pass carry the label loss with equal weight."""
        return ("clean", "cat")

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""] | None:
        """The contrast of the two passes; see `nt_xent_loss`.

        Args:
            step: gives the passes and the gradient at the embeddings.
            state: the projection head.
        """
        if self.epsilon > 0 and step.inputs.get("input_ids") is None:
            raise MethodError("cat needs input_ids: it perturbs the word-embedding matrix, which inputs_embeds bypass.")
        clean, edits = step.clean, None
        if self.epsilon > 0:
            offset = self._perturbation(step, step.gradient("clean", wrt=embedding_of))
            if step.first:
                check_precision("cat.epsilon", clean.embedding, offset)
            edits = Edits(embedding=lambda states: (states + offset).to(states.dtype))
        perturbed = step.run("cat", edits=edits, kind="label")
        self._report(step, clean, perturbed)
        if state is None:
            return None
        one, two = (self._project(state, output) for output in (clean, perturbed))
        if len(one) == 1 and not self.gather_across_devices:
            step.notice("cat has 1 row to contrast, which gives a contrast of 0; use a larger batch per device.")
        if self.gather_across_devices:
            both, _ = step.group(
                torch.cat([one, two], dim=1), step.labels, source="cls", devices=True, accumulation=False
            )
            one, two = both.chunk(2, dim=1)
        return nt_xent_loss(one, two, temperature=self.temperature)

    def _perturbation(
        self, step: Step, gradient: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """r, spread over all occurrences of each id; the rows of padding stay 0."""
        ids, parts = step.inputs["input_ids"], step.anatomy
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if parts.padding_id is not None:
            gradient = gradient.masked_fill((ids == parts.padding_id)[..., None], 0.0)
        sums, slots = by_token(gradient, ids)
        special = torch.zeros(len(sums), 1, dtype=torch.bool, device=ids.device)
        special[_frame(slots, step.inputs.get("attention_mask"), parts.sentence_token)] = True
        of_special = torch.where(special, sums, 0.0).square().sum()  # indexing by a mask would wait for the device
        share = of_special / sums.square().sum().clamp(min=torch.finfo(sums.dtype).tiny)
        step.report("special_gradient_fraction", share.nan_to_num(0.0))
        if not self.perturb_special:
            sums = sums.masked_fill(special, 0.0)
        perturbation = ascent_step(sums, self.epsilon, self.norm)
        rises = torch.where(perturbation != 0, perturbation * sums, 0.0)  # ε‖g‖ or ε Σ|g|; 0 if g is not finite
        step.report("predicted_loss_rise", rises.sum())
        step.report("zero_perturbation_fraction", (~perturbation.any()).float())
        return perturbation[slots]

    def _project(self, head: nn.Module, output: PassOutput) -> Float[Tensor, "batch projected"]:
        vector = output.vector(self.pooled_source)
        projected: Tensor = head(vector.to(next(head.parameters()).dtype))
        return projected

    def _report(self, step: Step, clean: PassOutput, perturbed: PassOutput) -> None:
        assert clean.logits is not None and perturbed.logits is not None
        with torch.no_grad():
            rise = step.task.loss(perturbed.logits, step.labels) - step.task.loss(clean.logits, step.labels)
            one, two = clean.vector(self.pooled_source), perturbed.vector(self.pooled_source)
            step.report("loss_rise", rise)
            step.report("cosine_of_views", nn.functional.cosine_similarity(one.float(), two.float()).mean())

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when the perturbation is nearly nil.

        Args:
            telemetry: means by name.
        """
        said = []
        if telemetry.get("zero_perturbation_fraction", 0.0) > 0:
            share = telemetry["zero_perturbation_fraction"]
            said.append(f"cat: in {share:.0%} of the steps the gradient was 0 or not finite, so nothing was perturbed.")
        rise = telemetry.get("predicted_loss_rise")
        if rise is not None and rise < 0.01:
            said.append(
                f"cat: to first order the perturbation raises the label loss by only {rise:.1e}, so the second pass is "
                "little more than a second dropout draw; use a larger cat.epsilon."
            )
        return said


def _frame(slots: Tensor, mask: Tensor | None, sentence_token: int) -> Tensor:
    """Slots of the special tokens of each text: its first and last token, or the last two if the head reads there."""
    real = mask.long() if mask is not None and mask.ndim == 2 else torch.ones_like(slots)
    last = slots.shape[1] - 1 - real.flip(1).argmax(dim=1)
    first = real.argmax(dim=1) if sentence_token == 0 else (last - 1).clamp(min=0)
    return slots.gather(1, torch.stack([first, last], dim=1)).flatten()
