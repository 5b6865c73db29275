"""What a method is: settings, what it edits in a pass, the term it adds to a step, what it does to weights."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from typing_extensions import Protocol, runtime_checkable  # typing's own runs `clean` in a type check before 3.12

from steadytune.encoders import Anatomy, Edits, PassOutput, VectorSource
from steadytune.methods.settings import MethodError, check, lists_integers, plain, setting
from steadytune.tasks import Task

__all__ = [
    "Context",
    "Method",
    "MethodError",
    "Mix",
    "Mixture",
    "OwnOptimizer",
    "ParameterRule",
    "Pass",
    "PassKind",
    "Step",
    "Update",
    "setting",
]

Mix = Literal["none", "convex", "additive"]
PassKind = Literal["label", "auxiliary", "probe", "teacher"]
_M = TypeVar("_M", bound="Method")


@dataclass(frozen=True)
class Context:
    """What a method may look at before training.

    Attributes:
        anatomy: the parts of the model.
        task: what is trained.
        trainable: some parameter below the label map requires a gradient.
        world_size: number of processes that train together.
        model: the wrapped model; only `setup` may change it.
    """

    anatomy: Anatomy
    task: Task
    trainable: bool
    world_size: int
    model: nn.Module


@dataclass(frozen=True)
class Pass:
    """One pass, as a method sees it when it is asked for its edits.

    Attributes:
        name: name of the pass in the step.
        kind: "label" carries the label loss, "auxiliary" another loss, "probe" only finds a direction, "teacher" is
            compared with and gets no gradient.
        first: no pass of this wrapper has run before; the time for checks that cost a host sync.
        compute_dtype: dtype that matrix products round their inputs to under autocast; None without autocast.
        generator: a stream named by its arguments; the same in a recomputed or replayed pass.
        report: telemetry, by name.
        notice: a sentence for the log and the record, said once.
        inputs: the model's inputs without the labels; not to be changed.
        state: what the method's `setup` returned.
    """

    name: str
    kind: PassKind
    first: bool
    compute_dtype: torch.dtype | None
    generator: Callable[..., torch.Generator]
    report: Callable[[str, Tensor | float], None]
    notice: Callable[[str], None]
    inputs: Mapping[str, Tensor]
    state: nn.Module | None


@dataclass(frozen=True, eq=False)
class Mixture:
    """Which rows a pass mixes, so that its label loss mixes their labels alike.

    Attributes:
        partners: index of the row that each row is mixed with (batch,); labelled rows with labelled ones.
        share: of the row itself, in the mixture; the rest is its partner's.
    """

    partners: Tensor
    share: float


@dataclass(frozen=True)
class OwnOptimizer:
    """How a method's own parameters are optimized beside the encoder's.

    Attributes:
        learning_rate_scale: their learning rate in units of the encoder's.
        weight_decay: of all of them; None for the encoder's.
    """

    learning_rate_scale: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class ParameterRule:
    """How one parameter of the encoder is optimized.

    Attributes:
        learning_rate_scale: its learning rate in units of the encoder's.
        weight_decay: of this parameter; None for the encoder's.
    """

    learning_rate_scale: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class Update:
    """One optimizer step, as a method sees it right before and right after.

    Attributes:
        number: how many optimizer steps came before.
        total: how many there will be in all; None if `attach` was not told.
        parameters: the trainable ones of the wrapped model, by name.
        learning_rates: in force, by name.
        generator: a stream named by its arguments, the same in every process.
        report: telemetry, by name.
        notice: a sentence for the log and the record, said once.
    """

    number: int
    total: int | None
    parameters: Mapping[str, nn.Parameter]
    learning_rates: Mapping[str, float]
    generator: Callable[..., torch.Generator]
    report: Callable[[str, Tensor | float], None]
    notice: Callable[[str], None]


@runtime_checkable
class Step(Protocol):
    """One training step, as a method sees it in `loss`. A method never calls the model: it names a pass."""

    @property
    def number(self) -> int:
        """How many training passes of this model came before."""
        ...

    @property
    def first(self) -> bool:
        """No step of this wrapper has run before; the time for checks that cost a host sync."""
        ...

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The dtype that matrix products round their inputs to under autocast; None without autocast."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """The parts of the model."""
        ...

    @property
    def task(self) -> Task:
        """What is trained: its loss and its divergence."""
        ...

    @property
    def rehearsal(self) -> bool:
        """This step only finds the weights at which it is then taken, so that nothing may be learned from it."""
        ...

    def weight(self, name: str) -> Tensor:
        """A weight of the model as this step uses it: its own, or where another method moved it to, with its graph."""
        ...

    @property
    def labels(self) -> Shaped[Tensor, "items ..."]:
        """One entry per item of the task's loss, a text or a token or a place; -100 marks an item without a label."""
        ...

    @property
    def text_shares(self) -> Float[Tensor, " batch"] | None:
        """Share of each text in the mean of the label loss, for terms that are means over texts.

        None where all count alike; where words are labelled, a text counts by their number.
        """
        ...

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The model's inputs without the labels; not to be changed."""
        ...

    @property
    def clean(self) -> PassOutput:
        """The pass without extra edits that all methods share."""
        ...

    def run(
        self,
        name: str,
        *,
        edits: Edits | None = None,
        dropout: str = "fresh",
        kind: PassKind = "auxiliary",
        leaf_embedding: bool = False,
        mixture: Mixture | None = None,
    ) -> PassOutput:
        """The pass of this name; run at most once in a step.

        Its dropout is "fresh" or "as NAME" of an earlier pass. "as clean" before there is a clean pass draws from the
        main stream, and a clean pass that follows replays it. A `mixture` says which rows the edits mix.
        """
        ...

    def resume(self, name: str, *, base: str, layer: int, hidden: Tensor, dropout: str = "as base") -> PassOutput:
        """The layers from `layer` on with other states; dropout and random edits as in `base`, or "fresh"."""
        ...

    def gradient(
        self,
        name: str,
        *,
        wrt: Callable[[PassOutput], Tensor],
        of: Callable[[PassOutput], Tensor] | None = None,
        settle: bool = False,
    ) -> Tensor:
        """Gradient of a loss of a pass, by default of its label loss, with respect to one recorded value.

        No weight gradients are computed, unless the pass carries the label loss, its caller needs its graph no more
        (`settle`) and no other method may: then they come out of the same traversal, and wait for the step's backward.
        """
        ...

    def group(
        self, vectors: Tensor, labels: Tensor, *, source: VectorSource, devices: bool, accumulation: bool
    ) -> tuple[Tensor, Tensor]:
        """Vectors and labels of the whole group of rows that a contrast runs over, with exact gradients."""
        ...

    def over_processes(self, value: Tensor) -> Tensor:
        """Mean of a scalar over all processes, without gradient; every process must ask for it."""
        ...

    def generator(self, *key: int | str) -> torch.Generator:
        """The method's own stream at this step, by name."""
        ...

    def report(self, name: str, value: Tensor | float) -> None:
        """Telemetry, by name."""
        ...

    def notice(self, text: str) -> None:
        """A sentence for the log and the record, said once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A regularizer with its settings.

    Attributes:
        key: its name everywhere: module, card, recipe, prefix of a setting.
        mix: how `weight` enters the loss: "convex" (1 − λ) L_task + λ L, "additive" L_task + w R, or "none".
        probes_embedding: it asks for gradients with respect to the clean pass's embedding, trained or frozen.
        early_gradient: it sends gradients along ways that re-entrant gradient checkpointing cuts.
        setup_order: methods that change the loaded model come first: 0 sets weights anew, 1 adds noise to them,
            2 freezes or adapts them; 3, the usual, finds them as they will train.
        holds_weights: its `after_update` undoes a part of a step, so it comes after those that add to it.
        reads_updates: its `after_update` reads what the other methods' have left, so it comes after them.
        average_is_optional: the last weights are as good a result as its `averages`; validation may choose.
    """

    key: ClassVar[str]
    mix: ClassVar[Mix] = "none"
    probes_embedding: ClassVar[bool] = False
    early_gradient: ClassVar[bool] = False
    setup_order: ClassVar[int] = 3
    holds_weights: ClassVar[bool] = False
    reads_updates: ClassVar[bool] = False
    average_is_optional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if isinstance(value, list) and lists_integers(hint):  # as YAML and JSON write a tuple
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            check(f"{self.key}.{field.name}", value, hint, field.metadata)

    @property
    def coefficient(self) -> float:
        """λ or w; 0 for a method without a term."""
        return float(getattr(self, "weight", 0.0)) if self.mix != "none" else 0.0

    @property
    def active(self) -> bool:
        """Whether the settings ask for any effect; an inactive method costs nothing."""
        return self.mix == "none" or self.coefficient > 0

    @property
    def needs_total(self) -> bool:
        """Whether it must know how many optimizer steps there will be; a class whose every setting does may say so."""
        return False

    @property
    def acts_on_updates(self) -> bool:
        """Whether it has a part in optimizer steps, which must then be attached."""
        kind = type(self)
        return kind.before_update is not Method.before_update or kind.after_update is not Method.after_update

    @property
    def wants_survey(self) -> bool:
        """Whether `survey` must look at the training rows before the first step."""
        return False

    def rows_to_survey(self, rows: int) -> int:
        """At how many of so many training rows `survey` looks, each at the cost of its part of a plain step.

        Args:
            rows: to train on.
        """
        return rows if self.wants_survey else 0

    @property
    def offers_weights(self) -> bool:
        """Whether `averages` will give weights in place of the last ones; one method of a stack may."""
        return type(self).averages is not Method.averages

    def check(self, context: Context) -> None:  # noqa: B027 - most methods act everywhere
        """Refuse, in one sentence, where this method cannot act.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: the task or the training set-up does not fit.
            SiteUnavailable: the model lacks a site.
        """

    def setup(self, context: Context) -> nn.Module | None:
        """What the method owns, made once: trainable parameters, and buffers that a checkpoint must keep.

        Args:
            context: model, task and processes.
        """
        return None

    def training_task(self, task: Task) -> Task:
        """The task as this method wants it trained; evaluation keeps the given one.

        Args:
            task: what is trained.
        """
        return task

    def parameter_rules(self, context: Context) -> Mapping[str, ParameterRule]:
        """Parameters of the encoder that are optimized in another way than the rest, by name.

        Args:
            context: model, task and processes.
        """
        return {}

    def survey(  # noqa: B027 - as for check
        self,
        examples: Iterable[Mapping[str, Tensor]],
        gradients: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        state: nn.Module | None,
    ) -> None:
        """Look at the training rows once, before the first step; asked of a method that `wants_survey`.

        Args:
            examples: batches of one row each.
            gradients: of the label loss of such a row without dropout, by name of the parameter.
            state: what `setup` returned.
        """

    def before_update(self, now: Update, state: nn.Module | None) -> None:  # noqa: B027 - as for check
        """Change gradients after clipping, right before the optimizer step.

        Args:
            now: parameters, their gradients and learning rates.
            state: what `setup` returned.
        """

    def after_update(self, now: Update, state: nn.Module | None) -> None:  # noqa: B027 - as for check
        """Change or read weights, right after the optimizer step.

        Args:
            now: parameters and learning rates.
            state: what `setup` returned.
        """

    def averages(self, state: nn.Module | None) -> Mapping[str, Tensor]:
        """Weights to evaluate and export in place of the last ones, by name; empty for those.

        The tensors are buffers of `state`: what is exchanged with them stays there.

        Args:
            state: what `setup` returned.
        """
        return {}

    @property
    def moves_weights(self) -> bool:
        """Whether `moved_weights` will say where a step is taken; one method of a stack may."""
        return type(self).moved_weights is not Method.moved_weights

    def moved_weights(
        self, step: Step, weights: Mapping[str, Tensor], gradients: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Weights at which all passes of a step run and its gradient is taken, in place of the present ones, by name.

        Args:
            step: takes telemetry; no pass of it has run.
            weights: the trainable ones of the wrapped model, by name.
            gradients: computes those of the step's whole loss at the present weights, at the cost of one more step.
        """
        return {}

    def own_optimizer(self) -> OwnOptimizer:
        """How the parameters from `setup` are optimized."""
        return OwnOptimizer()

    def label_passes(self) -> tuple[str, ...]:
        """Names of the passes that this method wants the label loss on; empty for no opinion."""
        return ()

    def resume_layers(self, context: Context) -> frozenset[int]:
        """Layers at which it will resume the clean pass.

        Args:
            context: model, task and processes.
        """
        return frozenset()

    def shared_vectors(self) -> VectorSource | None:
        """Which vectors of all accumulated batches it needs at once, if any."""
        return None

    def edits(self, now: Pass) -> Edits | None:
        """What it changes inside a pass.

        Args:
            now: the pass that is about to run.
        """
        return None

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""] | None:
        """Its unweighted term, a mean over examples, float32 or wider.

        Args:
            step: gives passes, labels and streams.
            state: what `setup` returned.
        """
        return None

    def finish(self, context: Context, state: nn.Module | None) -> None:  # noqa: B027 - as for check
        """Make the trained model a plain one again, if `setup` made it something else.

        Args:
            context: model, task and processes.
            state: what `setup` returned.
        """

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Sentences to say about the average telemetry of the last steps.

        Args:
            telemetry: means by name, without the method's prefix.
        """
        return []

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for YAML and JSON."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_settings(cls: type[_M], settings: Mapping[str, Any]) -> _M:
        """The method with these settings.

        Args:
            settings: by name.
        Raises:
            MethodError: an unknown name or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise MethodError(f"{cls.key} has no setting {name!r}; settings are {', '.join(known)}.")
        return cls(**settings)
