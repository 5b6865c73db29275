"""Label loss on clean and adversarially moved word embeddings, one ball per example. Card: pgd.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from steadytune.encoders import PassOutput
from steadytune.functional import Ball, draw_noise, end_tokens
from steadytune.methods.contract import Context, Method, MethodError, Step, setting
from steadytune.methods.offsets import (
    check_ids,
    check_precision,
    embedding_of,
    moved_by,
    real_of,
    report_offset,
    said_of_still_examples,
)

_PART_OF_RADIUS = 0.5  # step of several, where none is given


@dataclass(frozen=True, kw_only=True)
class PGD(Method):
    """Adversarial training by projected steps up the label loss; with one step it is FGM (Miyato et al. 2017)."""

    key: ClassVar[str] = "pgd"
    probes_embedding: ClassVar[bool] = True
    early_gradient: ClassVar[bool] = True

    epsilon: float = setting(0.3, "ε, radius of the ball of an example", low=0, source="middle of a grid 0.1 to 1")
    relative: bool = setting(True, "ε in units of the mean length of the example's embeddings", source="derived")
    steps: int = setting(3, "K, steps; 1 is FGM", low=1, source="common in ports for Transformers")
    step_size: float | None = setting(
        None, "a/ε, one of several steps in units of ε; 0.5 if null", low=0, open_low=True, source="derived"
    )
    direction: Literal["gradient", "random"] = setting(
        "gradient", "up the label loss, or by chance at the same cost of size", source="Miyato 2017"
    )
    perturb_special: bool = setting(True, "also the first and the last token", source="no exclusion in the paper")
    dropout: Literal["as clean", "fresh"] = setting(
        "as clean", "dropout of the perturbed pass: that of the clean one, or its own", source="derived"
    )

    def check(self, context: Context) -> None:
        """Refuse a size for several steps where there is one.

        Args:
            context: model, task and processes.
        """
        if self.steps == 1 and self.step_size is not None:
            raise MethodError("pgd.step_size does nothing at steps 1, where the step is epsilon itself; leave it null.")

    def label_passes(self) -> tuple[str, ...]:
        """Clean and perturbed pass carry the label loss with equal weight."""
        return ("clean", "pgd")

    def loss(self, step: Step, state: nn.Module | None) -> None:
        """Run the perturbed pass; there is no term of its own.

        Args:
            step: gives the passes and the gradients at the embeddings.
            state: unused.
        """
        check_ids(step, self.key)
        clean = step.clean
        offset = self._climb(step, clean) if self.epsilon > 0 else None
        perturbed = step.run("pgd", edits=moved_by(offset), dropout=self.dropout, kind="label")
        assert clean.logits is not None and perturbed.logits is not None
        with torch.no_grad():
            rise = step.task.loss(perturbed.logits, step.labels) - step.task.loss(clean.logits, step.labels)
        step.report("loss_rise", rise)

    def _climb(self, step: Step, clean: PassOutput) -> Tensor:
        """r, after K steps from 0."""
        embedding = clean.embedding.detach()
        real = real_of(step, embedding)
        movable = real if self.perturb_special else real & ~end_tokens(real, step.anatomy.sentence_token)
        ball = Ball.around(embedding, real, norm="l2", radius=self.epsilon, relative=self.relative, movable=movable)
        size = self.epsilon * (1.0 if self.steps == 1 else self.step_size or _PART_OF_RADIUS)
        offset = torch.zeros_like(embedding, dtype=torch.promote_types(embedding.dtype, torch.float32))
        chance = None
        if self.direction == "random":
            chance = draw_noise(embedding, 1.0, "normal", step.generator("direction"))
        for taken in range(self.steps):
            offset = ball.step(offset, self._gradient(step, taken, offset) if chance is None else chance, size)
        if step.first:
            check_precision("pgd.epsilon", embedding, offset)
        report_offset(step, offset, embedding, real)
        return offset

    def _gradient(self, step: Step, taken: int, offset: Tensor) -> Tensor:
        """Of the label loss at the embeddings after so many steps, with the dropout of the clean pass."""
        if taken == 0:
            return step.gradient("clean", wrt=embedding_of, settle=True)
        name = f"pgd/probe/{taken}"
        step.run(name, edits=moved_by(offset), dropout="as clean", kind="probe", leaf_embedding=True)
        return step.gradient(name, wrt=embedding_of)

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when nothing was perturbed, or to no effect.

        Args:
            telemetry: means by name.
        """
        said = said_of_still_examples(self.key, telemetry)
        rise = telemetry.get("loss_rise")
        if rise is not None and rise < 0.01 and self.direction == "gradient" and self.epsilon > 0:
            said.append(
                f"pgd: the perturbation raises the label loss by only {rise:.1e}, so the second pass is little more "
                "than the first one again; use a larger pgd.epsilon."
            )
        return said
