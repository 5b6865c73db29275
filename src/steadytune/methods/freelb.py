"""The label loss averaged over the path of an ascent in the word embeddings. Card: freelb.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from steadytune.encoders import Edits, PassOutput
from steadytune.functional import Ball, draw_noise
from steadytune.methods.contract import Method, Step, setting
from steadytune.methods.offsets import (
    check_ids,
    check_precision,
    embedding_of,
    moved_by,
    real_of,
    report_offset,
    said_of_still_examples,
)


@dataclass
class _Path:
    """Where the perturbation stands; it begins inside the first pass, which brings the embeddings."""

    embedding: Tensor
    real: Tensor
    ball: Ball
    offset: Tensor


@dataclass(frozen=True, kw_only=True)
class FreeLB(Method):
    """Every pass of an ascent trains the weights too, so that the attack comes free (Zhu et al. 2020)."""

    key: ClassVar[str] = "freelb"
    probes_embedding: ClassVar[bool] = True
    early_gradient: ClassVar[bool] = True

    steps: int = setting(3, "K, passes, each with its share of the label loss", low=1, source="Zhu 2020, released code")
    step_size: float = setting(
        0.1, "α, length of a step of an example", low=0, open_low=True, source="Zhu 2020, released code"
    )
    initial_size: float = setting(0.2, "s, bound of the uniform start", low=0, source="Zhu 2020, released code")
    epsilon: float = setting(0.3, "ε, radius of the ball; 0 for none", low=0, source="Zhu 2020, released code")
    relative: bool = setting(False, "sizes in units of the mean length of the embeddings", source="derived")
    direction: Literal["gradient", "random"] = setting(
        "gradient", "up the label loss, or straight on by chance", source="Zhu 2020"
    )

    @property
    def active(self) -> bool:
        """Not if its only pass starts at the embeddings themselves: that is plain fine-tuning."""
        return self.steps > 1 or self.initial_size > 0

    def label_passes(self) -> tuple[str, ...]:
        """All points of the path, with equal weight."""
        return tuple(f"freelb/{index}" for index in range(self.steps))

    def loss(self, step: Step, state: nn.Module | None) -> None:
        """Run the passes; all but the last are back-propagated at once. There is no term of its own.

        Args:
            step: gives the passes and the gradients at the embeddings.
            state: unused.
        """
        check_ids(step, self.key)
        first, *others = self.label_passes()
        output, path = self._begin(step, first)
        logits = output.logits
        if step.first:
            check_precision("freelb.initial_size", path.embedding, path.offset)
        chance = None
        if self.direction == "random":
            chance = draw_noise(path.embedding, 1.0, "normal", step.generator("direction"))
        for before, name in zip([first, *others], others, strict=False):
            gradient = step.gradient(before, wrt=embedding_of, settle=True)
            path.offset = path.ball.step(path.offset, gradient if chance is None else chance, self.step_size)
            output = step.run(
                name, edits=moved_by(path.offset), dropout=f"as {first}", kind="label", leaf_embedding=True
            )
        if step.first and others:
            check_precision("freelb.step_size", path.embedding, path.offset)
        assert logits is not None and output.logits is not None
        with torch.no_grad():
            rise = step.task.loss(output.logits, step.labels) - step.task.loss(logits, step.labels)
        step.report("loss_rise", rise)
        report_offset(step, path.offset, path.embedding, path.real)

    def _begin(self, step: Step, name: str) -> tuple[PassOutput, _Path]:
        """The first pass, with the main stream's dropout, and a start that its embeddings set the scale of."""
        begun: list[_Path] = []

        def start(states: Tensor) -> Tensor:
            embedding = states.detach()
            real = real_of(step, embedding)
            ball = Ball.around(embedding, real, norm="l2", radius=self.epsilon or None, relative=self.relative)
            offset = ball.spread(draw_noise(embedding, self.initial_size, "uniform", step.generator("start")))
            begun.append(_Path(embedding, real, ball, offset))
            return (states + offset).to(states.dtype)

        output = step.run(name, edits=Edits(embedding=start), dropout="as clean", kind="label", leaf_embedding=True)
        return output, begun[0]

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when nothing was perturbed.

        Args:
            telemetry: means by name.
        """
        return said_of_still_examples(self.key, telemetry)
