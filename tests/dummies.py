"""Methods that do one thing each, to prove the engine with; they are nobody's regularizer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steadytune.encoders import Edits, PassOutput
from steadytune.methods.contract import Context, Method, Mix, ParameterRule, Pass, Step, Update


@dataclass(frozen=True, kw_only=True)
class Dummy(Method):
    """A method whose fields may be of any kind; those of a real one are settings and are checked as such."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class LogitPenalty(Dummy):
    """Mean square of the logits: a term that is a mean over examples and needs no pass of its own."""

    key: ClassVar[str] = "logit_penalty"
    mix: ClassVar[Mix] = "additive"
    weight: float = 0.5

    def loss(self, step: Step, state: nn.Module | None) -> Tensor:
        logits = step.clean.logits
        assert logits is not None
        return logits.square().sum(dim=-1).mean()


@dataclass(frozen=True, kw_only=True)
class Consistency(Dummy):
    """Squared distance of the logits of two passes that differ in their dropout."""

    key: ClassVar[str] = "consistency"
    mix: ClassVar[Mix] = "additive"
    weight: float = 0.5
    dropout: str = "fresh"
    pass_name: str = "second"

    def loss(self, step: Step, state: nn.Module | None) -> Tensor:
        first, second = step.clean, step.run(self.pass_name, dropout=self.dropout)
        assert first.logits is not None and second.logits is not None
        return (first.logits - second.logits).square().mean()


@dataclass(frozen=True, kw_only=True)
class Twin(Consistency):
    """The same again under another key, so that it meets `Consistency` in a stack."""

    key: ClassVar[str] = "twin"


@dataclass(frozen=True, kw_only=True)
class Suffix(Dummy):
    """Squared distance of the states above a layer to those after noise at its entrance, with one dropout for both."""

    key: ClassVar[str] = "suffix"
    mix: ClassVar[Mix] = "additive"
    weight: float = 0.5
    layer: int = 1
    scale: float = 0.0
    dropout: str = "as base"

    def resume_layers(self, context: Context) -> frozenset[int]:
        return frozenset({self.layer})

    def loss(self, step: Step, state: nn.Module | None) -> Tensor:
        hidden = step.clean.hidden[self.layer]
        noise = torch.empty_like(hidden).normal_(generator=step.generator("noise"))
        noisy = step.resume(
            "noisy", base="clean", layer=self.layer, hidden=hidden + self.scale * noise, dropout=self.dropout
        )
        above = range(self.layer + 1, len(step.clean.hidden))
        distances = [(noisy.hidden[i] - step.clean.hidden[i]).square().mean() for i in above]
        return torch.stack(distances).sum()


def embedding_of(output: PassOutput) -> Tensor:
    """Where a probe differentiates."""
    return output.embedding


@dataclass(frozen=True, kw_only=True)
class Probe(Dummy):
    """Label loss on the clean pass and on one whose embeddings are moved along the clean gradient."""

    key: ClassVar[str] = "probe"
    mix: ClassVar[Mix] = "none"
    size: float = 0.1
    seen: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def label_passes(self) -> tuple[str, ...]:
        return ("clean", "moved")

    def loss(self, step: Step, state: nn.Module | None) -> None:
        gradient = step.gradient("clean", wrt=embedding_of)
        self.seen["gradient"] = gradient
        offset = self.size * gradient / gradient.norm()
        step.run("moved", edits=Edits(embedding=lambda states: states + offset), kind="label")


@dataclass(frozen=True, kw_only=True)
class Owner(Dummy):
    """Owns a projection of the sentence vector and pulls it towards zero."""

    key: ClassVar[str] = "owner"
    mix: ClassVar[Mix] = "additive"
    weight: float = 0.5

    def setup(self, context: Context) -> nn.Module:
        return nn.Linear(context.anatomy.base.config.hidden_size, 4)  # type: ignore[union-attr]

    def loss(self, step: Step, state: nn.Module | None) -> Tensor:
        assert state is not None
        return state(step.clean.vector("cls").to(state.weight.dtype)).square().mean()  # lower precision under autocast


@dataclass(frozen=True, kw_only=True)
class Scorer(Dummy):
    """A learned additive bias on the attention scores of a second pass: the attention site with own parameters."""

    key: ClassVar[str] = "scorer"
    mix: ClassVar[Mix] = "additive"
    weight: float = 0.5

    def check(self, context: Context) -> None:
        context.anatomy.require("attention", self.key)

    def setup(self, context: Context) -> nn.Module:
        width = context.anatomy.base.config.hidden_size  # type: ignore[union-attr]
        return nn.ModuleList(nn.Linear(width, width) for _ in range(context.anatomy.depth))

    def loss(self, step: Step, state: nn.Module | None) -> Tensor:
        assert isinstance(state, nn.ModuleList)

        def bias(index: int, states: Tensor, mask: Any) -> Tensor:
            still = states.detach().to(state[index].weight.dtype)
            return (state[index](still) @ still.mT / 4)[:, None].to(states.dtype)

        other = step.run("biased", edits=Edits(attention=bias))
        assert other.logits is not None and step.clean.logits is not None
        return (other.logits - step.clean.logits).square().mean()


@dataclass(frozen=True, kw_only=True)
class Fails(Dummy):
    """Raises inside a pass, at the entrance of layer 1, while the switch is on."""

    key: ClassVar[str] = "fails"
    mix: ClassVar[Mix] = "none"
    switch: dict[str, bool] = field(default_factory=lambda: {"on": False}, compare=False)
    where: str = "clean"

    def edits(self, now: Pass) -> Edits | None:
        def edit(index: int, states: Tensor) -> Tensor:
            if self.switch["on"] and index == 1:
                raise ArithmeticError("inside a pass")
            return states

        return Edits(hidden=edit) if now.name == self.where else None


@dataclass(frozen=True, kw_only=True)
class Watch(Dummy):
    """Keeps what `look` finds in a step, for the test to read; adds nothing."""

    key: ClassVar[str] = "watch"
    mix: ClassVar[Mix] = "none"
    look: Any = None
    layers: frozenset[int] = frozenset()
    seen: dict[str, Any] = field(default_factory=dict, compare=False)

    def resume_layers(self, context: Context) -> frozenset[int]:
        return self.layers

    def loss(self, step: Step, state: nn.Module | None) -> None:
        found: Mapping[str, Any] = self.look(step)
        self.seen.update(found)


@dataclass(frozen=True, kw_only=True)
class Climb(Dummy):
    """Label loss on the clean pass and on one moved along its gradient; the clean pass is settled if it may be."""

    key: ClassVar[str] = "climb"
    mix: ClassVar[Mix] = "none"
    probes_embedding: ClassVar[bool] = True
    size: float = 0.1
    settle: bool = True
    base: str = "clean"

    def label_passes(self) -> tuple[str, ...]:
        return (self.base, "climbed")

    def loss(self, step: Step, state: nn.Module | None) -> None:
        if self.base != "clean":
            step.run(self.base, dropout="as clean", kind="label")
        gradient = step.gradient(self.base, wrt=embedding_of, settle=self.settle)
        offset = self.size * gradient / gradient.norm()
        step.run("climbed", edits=Edits(embedding=lambda states: states + offset), kind="label")


@dataclass(frozen=True, kw_only=True)
class Reweighted(Dummy):
    """Every matrix times a factor, in passes that carry a loss."""

    key: ClassVar[str] = "reweighted"
    mix: ClassVar[Mix] = "none"
    factor: float = 1.5

    def check(self, context: Context) -> None:
        context.anatomy.require("weights", self.key)

    def edits(self, now: Pass) -> Edits | None:
        return Edits(weights=lambda name, value: self.factor * value if value.ndim > 1 else value)


@dataclass(frozen=True, kw_only=True)
class Taught(Dummy):
    """Squared distance of the scores to those of a model whose matrices are half as large."""

    key: ClassVar[str] = "taught"
    mix: ClassVar[Mix] = "additive"
    weight: float = 0.5

    def loss(self, step: Step, state: nn.Module | None) -> Tensor:
        half = Edits(weights=lambda name, value: value / 2 if value.ndim > 1 else value)
        taught = step.run("teacher", edits=half, dropout="as clean", kind="teacher")
        assert taught.logits is not None and step.clean.logits is not None
        assert not taught.logits.requires_grad
        return (step.clean.logits - taught.logits).square().mean()


@dataclass(frozen=True, kw_only=True)
class Updates(Dummy):
    """Halves gradients before a step, adds 1 to biases after it, and keeps what it was told."""

    key: ClassVar[str] = "updates"
    mix: ClassVar[Mix] = "none"
    seen: list[Update] = field(default_factory=list, compare=False)
    norms: list[float] = field(default_factory=list, compare=False)

    def before_update(self, now: Update, state: nn.Module | None) -> None:
        gradients = [p.grad for p in now.parameters.values() if p.grad is not None]
        self.norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        for gradient in gradients:
            gradient.mul_(0.5)

    def after_update(self, now: Update, state: nn.Module | None) -> None:
        self.seen.append(now)
        now.report("steps_seen", float(len(self.seen)))
        for parameter in now.parameters.values():
            if parameter.ndim == 1:
                parameter.add_(1.0)


@dataclass(frozen=True, kw_only=True)
class Ruled(Dummy):
    """Other learning rates and decay for the classifier."""

    key: ClassVar[str] = "ruled"
    mix: ClassVar[Mix] = "none"
    rule: ParameterRule = field(default_factory=lambda: ParameterRule(0.5, 0.0))

    def parameter_rules(self, context: Context) -> Mapping[str, ParameterRule]:
        return {name: self.rule for name, _ in context.model.named_parameters() if name.startswith("classifier")}


@dataclass(frozen=True, kw_only=True)
class RuledAgain(Ruled):
    """The same under another key."""

    key: ClassVar[str] = "ruled_again"


@dataclass(frozen=True, kw_only=True)
class Surveyor(Dummy):
    """Sums the squared gradients of single rows."""

    key: ClassVar[str] = "surveyor"
    mix: ClassVar[Mix] = "none"
    found: dict[str, Tensor] = field(default_factory=dict, compare=False)

    @property
    def wants_survey(self) -> bool:
        return True

    def survey(self, examples: Iterable[Mapping[str, Tensor]], gradients: Any, state: nn.Module | None) -> None:
        for example in examples:
            assert len(example["labels"]) == 1
            for name, gradient in gradients(example).items():
                self.found[name] = self.found.get(name, 0) + gradient.square()


@dataclass(frozen=True, kw_only=True)
class ZeroInTheEnd(Dummy):
    """Offers zeros in place of the classifier's weights, and makes nothing plain in the end."""

    key: ClassVar[str] = "zero_in_the_end"
    mix: ClassVar[Mix] = "none"
    finished: list[bool] = field(default_factory=list, compare=False)

    def setup(self, context: Context) -> nn.Module:
        module = nn.Module()
        module.register_buffer("weight", torch.zeros(dict(context.model.named_parameters())["classifier.weight"].shape))
        return module

    def averages(self, state: nn.Module | None) -> Mapping[str, Tensor]:
        assert state is not None
        return {"classifier.weight": state.get_buffer("weight")}

    def finish(self, context: Context, state: nn.Module | None) -> None:
        self.finished.append(True)
