"""Methods that do one thing each, to prove the engine with; they are nobody's regularizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steadytune.encoders import Edits, PassOutput
from steadytune.methods.contract import Context, Method, Mix, Pass, Step


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
