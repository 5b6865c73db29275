"""What a method is: settings, what it edits in a pass, and the term it adds to a step."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from typing_extensions import Protocol, runtime_checkable  # typing's own runs `clean` in a type check before 3.12

from steadytune.encoders import Anatomy, Edits, PassOutput, VectorSource
from steadytune.tasks import Task

Mix = Literal["none", "convex", "additive"]
PassKind = Literal["label", "auxiliary", "probe"]
_M = TypeVar("_M", bound="Method")


class MethodError(ValueError):
    """A setting is out of range, or a method cannot act here."""


def setting(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    source: str,
) -> Any:
    """A field of a method that a user may set.

    Args:
        default: value if none is given.
        description: symbol and meaning, for cards and help.
        low: smallest allowed number.
        high: largest allowed number.
        open_low: `low` itself is not allowed.
        source: where the default comes from.
    """
    limits = {"description": description, "low": low, "high": high, "open_low": open_low, "source": source}
    return dataclasses.field(default=default, metadata=limits)


@dataclass(frozen=True)
class Context:
    """What a method may look at before training.

    Attributes:
        anatomy: the parts of the model.
        task: what is trained.
        trainable: some parameter below the label map requires a gradient.
        world_size: number of processes that train together.
    """

    anatomy: Anatomy
    task: Task
    trainable: bool
    world_size: int


@dataclass(frozen=True)
class Pass:
    """One pass, as a method sees it when it is asked for its edits.

    Attributes:
        name: name of the pass in the step.
        kind: "label" carries the label loss, "auxiliary" another loss, "probe" only finds a direction.
        first: no pass of this wrapper has run before; the time for checks that cost a host sync.
        compute_dtype: dtype that matrix products round their inputs to under autocast; None without autocast.
        generator: a stream named by its arguments; the same in a recomputed or replayed pass.
        report: telemetry, by name.
        notice: a sentence for the log and the record, said once.
    """

    name: str
    kind: PassKind
    first: bool
    compute_dtype: torch.dtype | None
    generator: Callable[..., torch.Generator]
    report: Callable[[str, Tensor | float], None]
    notice: Callable[[str], None]


@dataclass(frozen=True)
class OwnOptimizer:
    """How a method's own parameters are optimized beside the encoder's.

    Attributes:
        learning_rate_scale: their learning rate in units of the encoder's.
        weight_decay: of all of them; None for the encoder's.
    """

    learning_rate_scale: float = 1.0
    weight_decay: float | None = None


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
    def labels(self) -> Shaped[Tensor, " batch"]:
        """One label per example; -100 marks an example without one."""
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
    ) -> PassOutput:
        """The pass of this name; run at most once in a step."""
        ...

    def resume(self, name: str, *, base: str, layer: int, hidden: Tensor, dropout: str = "as base") -> PassOutput:
        """The layers from `layer` on with other states; dropout and random edits as in `base`, or "fresh"."""
        ...

    def gradient(self, name: str, *, wrt: Callable[[PassOutput], Tensor]) -> Tensor:
        """Gradient of the label loss of a pass with respect to one recorded value; no weight gradients."""
        ...

    def group(
        self, vectors: Tensor, labels: Tensor, *, source: VectorSource, devices: bool, accumulation: bool
    ) -> tuple[Tensor, Tensor]:
        """Vectors and labels of the whole group of rows that a contrast runs over, with exact gradients."""
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
    """

    key: ClassVar[str]
    mix: ClassVar[Mix] = "none"
    probes_embedding: ClassVar[bool] = False
    early_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if isinstance(value, list) and _lists_integers(hint):  # as YAML and JSON write a tuple
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            _check(f"{self.key}.{field.name}", value, hint, field.metadata)

    @property
    def coefficient(self) -> float:
        """λ or w; 0 for a method without a term."""
        return float(getattr(self, "weight", 0.0)) if self.mix != "none" else 0.0

    @property
    def active(self) -> bool:
        """Whether the settings ask for any effect; an inactive method costs nothing."""
        return self.mix == "none" or self.coefficient > 0

    def check(self, context: Context) -> None:  # noqa: B027 - most methods act everywhere
        """Refuse, in one sentence, where this method cannot act.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: the task or the training set-up does not fit.
            SiteUnavailable: the model lacks a site.
        """

    def setup(self, context: Context) -> nn.Module | None:
        """The method's own trainable parameters, made once.

        Args:
            context: model, task and processes.
        """
        return None

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

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Sentences to say about the average telemetry of the last steps.

        Args:
            telemetry: means by name, without the method's prefix.
        """
        return []

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for YAML and JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _lists_integers(hint: Any) -> bool:
    return tuple[int, ...] in (hint, *get_args(hint))


def _check(path: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> None:
    optional = type(None) in get_args(hint)
    if optional and value is None:
        return
    kind = next(part for part in get_args(hint) if part is not type(None)) if optional else hint
    if not _fits(value, kind, limits):
        raise MethodError(f"{path} must be {_wanted(kind, limits)}{' or null' if optional else ''}; got {value!r}.")


def _wanted(kind: Any, limits: Mapping[str, Any]) -> str:
    """What is allowed, in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if kind is bool:
        return "true or false"
    if _lists_integers(kind):
        return "a list of integers"
    low, high = limits.get("low"), limits.get("high")
    bounds = [] if low is None else [f"{'>' if limits.get('open_low') else '>='} {low:g}"]
    bounds += [] if high is None else [f"<= {high:g}"]
    return " ".join(["an integer" if kind is int else "a number", " and ".join(bounds)]).strip()


def _fits(value: Any, kind: Any, limits: Mapping[str, Any]) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is bool:
        return isinstance(value, bool)
    if _lists_integers(kind):
        return isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if kind not in (int, float):
        return True  # a kind of its own, which the method checks itself
    if not isinstance(value, int if kind is int else (int, float)) or isinstance(value, bool):
        return False
    low, high = limits.get("low"), limits.get("high")
    below = low is not None and (value <= low if limits.get("open_low") else value < low)
    return math.isfinite(value) and not below and not (high is not None and value > high)
