"""Agreement with a pass whose word embeddings move where predictions change most. Card: smart.md."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadytune.encoders import Edits, PassOutput
from steadytune.functional import Ball, Norm, draw_noise
from steadytune.methods.buffers import buffer_name, parameter_name
from steadytune.methods.contract import Context, Method, MethodError, Mix, Step, Update, setting
from steadytune.methods.offsets import (
    check_ids,
    check_precision,
    embedding_of,
    moved_by,
    real_of,
    report_offset,
    said_of_still_examples,
)
from steadytune.tasks.task import DivergenceForm

_STEP_SIZE = 100.0  # η/ε as published, 1e-3 over 1e-5


class Teacher(nn.Module):
    """A moving average of the trainable weights, float32 or wider, as buffers.

    Args:
        model: whose weights it starts from.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                wide = torch.promote_types(parameter.dtype, torch.float32)
                self.register_buffer(buffer_name(name), parameter.detach().to(wide, copy=True))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names as in the model, and averages."""
        for name, average in self.named_buffers():
            yield parameter_name(name), average


@dataclass(frozen=True, kw_only=True)
class SMART(Method):
    """Smoothness under the worst small perturbation, and small steps from a moving teacher (Jiang et al. 2020).

    With `target` "clean", `norm` "l2", `inner` "power" and `bregman` 0 it is virtual adversarial training (VAT).
    """

    key: ClassVar[str] = "smart"
    mix: ClassVar[Mix] = "additive"
    probes_embedding: ClassVar[bool] = True
    early_gradient: ClassVar[bool] = True
    reads_updates: ClassVar[bool] = True

    weight: float = setting(1.0, "λ_s, weight of the smoothness; 0 for no SMART at all", low=0, source="Jiang 2020")
    epsilon: float = setting(0.03, "ε, radius of the ball", low=0, source="from a derived grid 0.01 to 0.3")
    relative: bool = setting(True, "sizes in units of the mean norm of the example's embeddings", source="derived")
    norm: Norm = setting("linf", "the ball bounds every entry, or the length of an example", source="Jiang 2020")
    initial_std: float = setting(
        0.03, "σ, deviation of an entry of the start (linf), or its length (l2)", low=0, open_low=True, source="derived"
    )
    steps: int = setting(1, "T, steps up the divergence", low=1, source="Jiang 2020")
    inner: Literal["ascent", "power"] = setting(
        "ascent", "steps added and projected, or power iterations that end at ε g/‖g‖", source="Jiang 2020"
    )
    step_size: float | None = setting(None, "η/ε of ascent; 100 if null", low=0, open_low=True, source="Jiang 2020")
    target: Literal["symmetric", "clean"] = setting(
        "symmetric", "both predictions learn from each other, or the perturbed from the clean", source="Jiang 2020"
    )
    direction: Literal["gradient", "random"] = setting(
        "gradient", "up the divergence, or by chance", source="Jiang 2020"
    )
    dropout: Literal["as clean", "fresh"] = setting(
        "as clean", "dropout of the perturbed pass: that of the clean one, or its own", source="derived"
    )
    bregman: float = setting(1.0, "μ, weight of the distance to the teacher; 0 for none", low=0, source="Jiang 2020")
    momentum: float = setting(0.999, "β, of the teacher", low=0, high=1, source="Jiang 2020")
    momentum_early: float = setting(0.99, "β, of the teacher at first", low=0, high=1, source="Jiang 2020")
    early_fraction: float = setting(0.1, "share of the updates with it", low=0, high=1, source="Jiang 2020")

    @property
    def active(self) -> bool:
        """Whether there is a term that can differ from 0."""
        return self.weight > 0 and (self._perturbs or self.bregman > 0)

    @property
    def needs_total(self) -> bool:
        """Whether the teacher's momentum changes on the way."""
        return self.bregman > 0 and self.early_fraction > 0

    @property
    def acts_on_updates(self) -> bool:
        """Whether there is a teacher to keep."""
        return self.bregman > 0

    @property
    def _perturbs(self) -> bool:
        return self.epsilon > 0 or self.dropout == "fresh"

    def check(self, context: Context) -> None:
        """Refuse a step that is not taken, and a model whose weights cannot be exchanged for the teacher's.

        Args:
            context: model, task and processes.
        """
        if self.inner == "power" and self.step_size is not None:
            raise MethodError("smart.step_size does nothing at inner: power, which ends at epsilon; leave it null.")
        if self.bregman > 0:
            context.anatomy.require("weights", "smart")
            if self.momentum == 0 and (self.momentum_early == 0 or self.early_fraction == 0):
                raise MethodError(
                    "smart.momentum 0 keeps the teacher equal to the model, so its distance is always 0; raise it, "
                    "or set bregman to 0."
                )

    def setup(self, context: Context) -> nn.Module | None:
        """The teacher, equal to the model at first; none without a distance to it.

        Args:
            context: model, task and processes.
        """
        return Teacher(context.model) if self.bregman > 0 else None

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""]:
        """R_s + (μ / λ_s) · distance to the teacher, so that λ_s times it has both with their own weights.

        Args:
            step: gives the passes and the gradients at the embeddings.
            state: the teacher.
        """
        clean = step.clean
        assert clean.logits is not None
        term = clean.logits.new_zeros((), dtype=torch.promote_types(clean.logits.dtype, torch.float32))
        if self._perturbs:
            offset = self._climb(step, clean) if self.epsilon > 0 else None
            other = step.run("smart", edits=moved_by(offset), dropout=self.dropout)
            assert other.logits is not None
            anchor = clean.logits if self.target == "symmetric" else clean.logits.detach()
            smoothness = step.task.divergence(anchor, other.logits, self._form)
            step.report("smoothness", smoothness)
            term = term + smoothness
        if isinstance(state, Teacher):
            averages = dict(state.weights())
            exchanged = Edits(weights=lambda name, own: averages[name].to(own.dtype) if name in averages else own)
            teacher = step.run("smart/teacher", edits=exchanged, dropout="as clean", kind="teacher")
            assert teacher.logits is not None
            distance = step.task.divergence(clean.logits, teacher.logits, "sum")
            step.report("teacher_distance", distance)
            term = term + self.bregman / self.weight * distance
        return term

    @property
    def _form(self) -> DivergenceForm:
        return "sum" if self.target == "symmetric" else "directed"

    def _climb(self, step: Step, clean: PassOutput) -> Tensor:
        """r, after T steps from a random start."""
        check_ids(step, self.key)
        embedding = clean.embedding.detach()
        real = real_of(step, embedding)
        ball = Ball.around(embedding, real, norm=self.norm, radius=self.epsilon, relative=self.relative)
        offset = self._start(step, ball, embedding)
        chance = None
        if self.direction == "random":
            chance = draw_noise(embedding, 1.0, "normal", step.generator("direction"))
        for taken in range(self.steps):
            gradient = self._gradient(step, clean, taken, offset) if chance is None else chance
            if self.inner == "ascent":
                offset = ball.step(offset, gradient, (self.step_size or _STEP_SIZE) * self.epsilon)
            elif taken + 1 < self.steps:
                offset = self.initial_std * ball.unit * ball.normalized(gradient)
            else:
                offset = ball.step(torch.zeros_like(offset), gradient, self.epsilon)
        if step.first:
            check_precision("smart.epsilon", embedding, offset)
        report_offset(step, offset, embedding, real)
        return offset

    def _start(self, step: Step, ball: Ball, embedding: Tensor) -> Tensor:
        if self.norm == "linf":
            return ball.placed(draw_noise(embedding, self.initial_std, "normal", step.generator("start")))
        drawn = draw_noise(embedding, 1.0, "normal", step.generator("start"))
        return self.initial_std * ball.unit * ball.normalized(drawn)

    def _gradient(self, step: Step, clean: PassOutput, taken: int, offset: Tensor) -> Tensor:
        """Of the divergence from the clean prediction, held constant, with the dropout of the clean pass."""
        assert clean.logits is not None
        name, anchor = f"smart/probe/{taken}", clean.logits.detach()

        def rise(output: PassOutput) -> Tensor:
            assert output.logits is not None
            return step.task.divergence(anchor, output.logits, self._form)

        step.run(name, edits=moved_by(offset), dropout="as clean", kind="probe", leaf_embedding=True)
        return step.gradient(name, wrt=embedding_of, of=rise)

    def after_update(self, now: Update, state: nn.Module | None) -> None:
        """Let the teacher follow the new weights.

        Args:
            now: parameters and the place in training.
            state: the teacher.
        """
        if not isinstance(state, Teacher):
            return
        early = now.total is not None and now.number < self.early_fraction * now.total
        momentum = self.momentum_early if early else self.momentum
        for name, average in state.weights():
            if name in now.parameters:
                average.lerp_(now.parameters[name].detach().to(average.dtype), 1 - momentum)
        now.report("momentum", momentum)

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when examples were not perturbed.

        Args:
            telemetry: means by name.
        """
        return said_of_still_examples(self.key, telemetry)
