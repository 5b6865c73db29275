"""The step: runs named passes at most once, adds the terms of all methods, and puts the label loss where it belongs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from steadytune.encoders import Anatomy, Edits, PassOutput, PassRunner, RandomState, VectorSource, ambient_autocast
from steadytune.functional import keyed_generator, keyed_seed
from steadytune.methods.contract import Method, MethodError, Mixture, Pass, PassKind
from steadytune.objective.coefficients import Coefficients
from steadytune.objective.rows import Group, joined, live, rank
from steadytune.objective.settled import settle
from steadytune.tasks import Task


@dataclass
class PassCount:
    """What a step computed, in units of one whole forward pass; plain training is 1, 1, 1.

    Attributes:
        forward: forward passes.
        activation_gradient: traversals that compute gradients with respect to activations.
        weight_gradient: traversals that compute gradients with respect to weights.
    """

    forward: float = 0.0
    activation_gradient: float = 0.0
    weight_gradient: float = 0.0

    def add(self, forward: float = 0.0, activation_gradient: float = 0.0, weight_gradient: float = 0.0) -> None:
        """Count some more.

        Args:
            forward: see the attributes.
            activation_gradient: see the attributes.
            weight_gradient: see the attributes.
        """
        self.forward += forward
        self.activation_gradient += activation_gradient
        self.weight_gradient += weight_gradient

    @property
    def units(self) -> float:
        """Their sum; plain training is 3."""
        return self.forward + self.activation_gradient + self.weight_gradient


@dataclass
class StepOutput(ModelOutput):
    """What `RegularizedModel` returns in training mode.

    Attributes:
        loss: total, to be back-propagated; under `num_items_in_batch` the share of this batch in its group.
        logits: scores of the clean pass, or of the first pass with a label loss where there is no clean one; one row
            per item of the task's loss (a text, a tagged word, all starts and then all ends of answers); without a
            graph if a method has back-propagated that pass already.
        task_loss: mean label loss of this batch, without gradient.
        terms: unweighted value of each method's term, by key, without gradient.
        passes: what the step computed.
        telemetry: what each method did, by "key/name", without gradient.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    passes: PassCount | None = None
    telemetry: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class StepPlan:
    """What a model gives every one of its steps.

    Attributes:
        methods: the active methods, in the order of application.
        modules: their own parameters, by key.
        task: what is trained.
        anatomy: the parts of the model.
        coefficients: factors of the label loss and the terms.
        seed: names the methods' random streams.
        resume_at: layers at which a pass may be resumed.
        first: no step of this model has run before.
        count: labelled items of a batch, in a dtype whose quotients do not coarsen the gradient.
        weights: of the wrapped model, by name.
        parameters: those and the methods' own.
        notice: where a sentence for the log and the record goes.
    """

    methods: Sequence[Method]
    modules: Mapping[str, nn.Module]
    task: Task
    anatomy: Anatomy
    coefficients: Coefficients
    seed: int
    resume_at: frozenset[int]
    first: bool
    count: Callable[[Tensor], Tensor]
    weights: Mapping[str, nn.Parameter]
    parameters: Sequence[nn.Parameter]
    notice: Callable[[str], None]


@dataclass
class TrainingStep:
    """One training step; implements `steadytune.methods.contract.Step` for each method in turn.

    Args:
        plan: what the model gives every step.
        number: counts the training passes of the model; names the random streams of this step.
        runner: runs passes.
        batch: the model's keyword arguments, without labels.
        labels: one entry per item.
        per_text: how many labelled items each text has; None where all texts count alike.
        share: this batch's part of the accumulation group; 1.0 if it is not known.
        cell: the group whose vectors were computed ahead, and this batch's place in it.
        moved: weights that every pass uses in place of the model's own, by name.
        rehearsal: the step is computed only to find `moved`.
    """

    plan: StepPlan
    number: int
    runner: PassRunner
    batch: Mapping[str, Any]
    labels: Tensor
    per_text: Tensor | None = None
    share: Tensor | float = 1.0
    cell: tuple[Group, int] | None = None
    moved: Mapping[str, Tensor] = field(default_factory=dict)
    rehearsal: bool = False
    method: Method | None = None
    passes: PassCount = field(default_factory=PassCount)
    outputs: dict[str, PassOutput] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    kept_edits: dict[str, list[Edits]] = field(default_factory=dict)
    asked: dict[str, tuple[Edits | None, str, Mixture | None]] = field(default_factory=dict)
    resumed: dict[str, tuple[str, int, Tensor, str]] = field(default_factory=dict)
    settled: dict[str, Tensor] = field(default_factory=dict)
    probes: set[str] = field(default_factory=set)
    main_start: RandomState | None = None
    telemetry: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.autocast, self.compute_dtype = ambient_autocast(self.labels.device)

    @functools.cached_property
    def inputs(self) -> Mapping[str, Any]:
        """The batch as the encoder reads it: one sequence per row, also where the model takes several choices."""
        ids, embeds = self.batch.get("input_ids"), self.batch.get("inputs_embeds")
        if (ids is None or ids.ndim < 3) and (embeds is None or embeds.ndim < 4):
            return self.batch
        return {name: v.flatten(0, 1) if isinstance(v, Tensor) and v.ndim > 2 else v for name, v in self.batch.items()}

    @property
    def text_shares(self) -> Tensor | None:
        """Share of each text in the mean of the label loss; see `Step.text_shares`."""
        if self.per_text is None:
            return None
        count = self.per_text.to(self.plan.count(self.labels).dtype)
        return count / count.sum().clamp(min=1)

    def weight(self, name: str) -> Tensor:
        """The weight of this name in every pass of the step; see `Step.weight`."""
        return self.moved[name] if name in self.moved else self.plan.weights[name]

    @property
    def first(self) -> bool:
        """No step of this model has run before."""
        return self.plan.first

    @property
    def anatomy(self) -> Anatomy:
        """The parts of the model."""
        return self.plan.anatomy

    @property
    def task(self) -> Task:
        """What is trained."""
        return self.plan.task

    def compute(self) -> StepOutput:
        """All terms, then the label loss on the passes that they declare."""
        plan, factors = self.plan, self.plan.coefficients
        terms: dict[str, Tensor] = {}
        if self.cell is not None:
            self.passes.add(forward=1)  # the pass of `prime`
        for method in plan.methods:
            self.method = method
            if (term := method.loss(self, plan.modules.get(method.key))) is not None:
                terms[method.key] = term
        names = dict.fromkeys(name for method in plan.methods for name in method.label_passes()) or ["clean"]
        losses = [self._task_loss(name) for name in names]
        task_loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        total = task_loss if factors.task == 1 else factors.task * task_loss
        for key, term in terms.items():
            total = total + factors.terms[key] * term
        return StepOutput(
            loss=total * self.share,
            logits=self.outputs[next(iter(names))].logits,
            task_loss=task_loss.detach(),
            terms={key: term.detach() for key, term in terms.items()},
            passes=self.passes,
            telemetry={name: torch.stack(values).mean() for name, values in self.telemetry.items()},
        )

    def forget(self) -> None:
        """Let go of all passes: edits refer back to this step, and a cycle would keep activations alive."""
        self.outputs.clear()
        self.kept_edits.clear()
        self.asked.clear()
        self.resumed.clear()
        self.settled.clear()

    def _task_loss(self, name: str) -> Tensor:
        if name in self.settled:
            return self.settled[name]
        output = self.clean if name == "clean" else self.outputs[name]
        assert output.logits is not None
        loss = self.plan.task.loss(output.logits, self.labels)
        if name not in self.asked or (mixture := self.asked[name][2]) is None:
            return loss
        of_partners = self.plan.task.loss(output.logits, self.labels[mixture.partners])
        return mixture.share * loss + (1 - mixture.share) * of_partners

    # -- passes -------------------------------------------------------------------------------------------------------

    @property
    def clean(self) -> PassOutput:
        """The pass without extra edits that all methods share; it draws its dropout from the main stream."""
        if "clean" not in self.outputs:
            leaf = any(method.probes_embedding for method in self.plan.methods)
            self.outputs["clean"] = self._run("clean", None, self._main_stream(), "clean", "label", leaf)
            self.main_start = self.outputs["clean"].start
        return self.outputs["clean"]

    def _main_stream(self) -> RandomState | None:
        """Where the dropout of the clean pass starts; None to draw on from the main stream, once in a step."""
        if self.main_start is None and self.cell is not None:
            group, place = self.cell
            group.starts[place].restore()
        return self.main_start

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
        """The pass of this name; see `Step.run`."""
        if name not in self.outputs:
            base = dropout.removeprefix("as ")
            start: RandomState | int | None
            if dropout == "fresh":
                start, stream = self._named_start(name), name
            elif base == "clean":
                start, stream = self._main_stream(), "clean"
            else:
                start, stream = self._known(base).start, self.streams[base]
            with torch.no_grad() if kind == "teacher" else nullcontext():
                self.outputs[name] = self._run(name, edits, start, stream, kind, leaf_embedding)
            if kind == "probe":
                self.probes.add(name)
            if base == "clean":
                self.main_start = self.outputs[name].start
            self.asked[name] = (edits, dropout, mixture)
        elif not _same(self.asked.get(name, ()), (edits, dropout, mixture)):
            raise MethodError(f"the pass {name!r} was run with other edits or dropout; give this one its own name.")
        return self.outputs[name]

    def resume(self, name: str, *, base: str, layer: int, hidden: Tensor, dropout: str = "as base") -> PassOutput:
        """The layers from `layer` on; see `Step.resume`."""
        if name not in self.outputs:
            source = self._known(base)
            edits, self.streams[name] = self.kept_edits[base], self.streams[base]
            if dropout == "fresh":
                start: RandomState | int = self._named_start(name)
                edits, self.streams[name] = self._edits(name, "auxiliary", name), name
            elif layer in source.record.random_states:
                start = source.record.random_states[layer]
            else:
                raise MethodError(f"a pass resumed at layer {layer} must be declared by resume_layers().")
            self.outputs[name] = self.runner.resume(source, layer, hidden, edits, start=start, autocast=self.autocast)
            self.resumed[name] = (base, layer, hidden, dropout)
            depth = len(source.hidden) - 1
            part = (depth - layer) / depth
            gradients = part if torch.is_grad_enabled() else 0.0
            self.passes.add(part, gradients, gradients)
        elif name not in self.resumed or not _same(self.resumed[name], (base, layer, hidden, dropout)):
            raise MethodError(f"the pass {name!r} was run with other states or dropout; give this one its own name.")
        return self.outputs[name]

    def gradients(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Of the whole loss, by name of the parameters that it reaches.

        Args:
            parameters: by name.
        """
        assert self.method is not None
        if not torch.is_grad_enabled():
            raise MethodError(f"{self.method.key} needs a gradient inside the step; train outside torch.no_grad().")
        loss = self.compute().loss
        assert loss is not None
        found = torch.autograd.grad(self._lift * loss, list(parameters.values()), allow_unused=True)
        return {name: g / self._lift for name, g in zip(parameters, found, strict=True) if g is not None}

    def gradient(
        self,
        name: str,
        *,
        wrt: Callable[[PassOutput], Tensor],
        of: Callable[[PassOutput], Tensor] | None = None,
        settle: bool = False,
    ) -> Tensor:
        """Gradient of a loss of a pass; see `Step.gradient`."""
        assert self.method is not None
        if not torch.is_grad_enabled():
            raise MethodError(f"{self.method.key} needs a gradient inside the step; train outside torch.no_grad().")
        output = self._known(name)
        if settle and (name != "clean" or self._alone()):
            return self._settle(name, output, wrt)
        self.passes.add(activation_gradient=1)
        loss = self._task_loss(name) if of is None else of(output)
        (gradient,) = torch.autograd.grad(self._lift * loss, wrt(output), retain_graph=name not in self.probes)
        return gradient / self._lift

    @property
    def _lift(self) -> float:
        """Keeps gradients that are computed inside the step above the smallest float16; no scaler sees them."""
        return 2.0**14 if self.compute_dtype == torch.float16 else 1.0

    def _settle(self, name: str, output: PassOutput, wrt: Callable[[PassOutput], Tensor]) -> Tensor:
        loss = self._task_loss(name)
        gradient, self.settled[name] = settle(loss, output, wrt, self.plan.parameters, lift=self._lift)
        return gradient

    def _alone(self) -> bool:
        """No other method adds a term or asks for a pass."""
        return sum(type(method).loss is not Method.loss for method in self.plan.methods) == 1

    def _known(self, name: str) -> PassOutput:
        return self.clean if name == "clean" else self.outputs[name]

    def _named_start(self, name: str) -> int:
        return keyed_seed(self.plan.seed, "dropout", name, self.number, rank())

    def _run(
        self,
        name: str,
        own_edits: Edits | None,
        start: RandomState | int | None,
        stream: str,
        kind: PassKind,
        leaf_embedding: bool,
    ) -> PassOutput:
        edits = [Edits(weights=lambda key, value: self.moved.get(key, value))] if self.moved else []
        edits += [] if own_edits is None else [own_edits]  # an offset comes before random noise
        edits += self._edits(name, kind, stream)
        self.streams[name], self.kept_edits[name] = stream, edits
        gradients = 1.0 if torch.is_grad_enabled() and kind != "probe" else 0.0
        self.passes.add(1, gradients, gradients)
        return self.runner.run(
            self.batch,
            edits,
            start=start,
            keep_random_state_at=self.plan.resume_at,
            leaf_embedding=leaf_embedding,
            autocast=self.autocast,
        )

    def _edits(self, name: str, kind: PassKind, stream: str) -> list[Edits]:
        wanted = (method.edits(self._describe(method, name, kind, stream)) for method in self.plan.methods)
        return [edit for edit in wanted if edit is not None]

    def _describe(self, method: Method, name: str, kind: PassKind, stream: str) -> Pass:
        device = self.labels.device

        def generator(*key: int | str) -> torch.Generator:
            return keyed_generator(device, self.plan.seed, method.key, self.number, rank(), stream, *key)

        def report(telemetry_name: str, value: Tensor | float) -> None:
            self._report(method, telemetry_name, value)

        state = self.plan.modules.get(method.key)
        return Pass(
            name, kind, self.plan.first, self.compute_dtype, generator, report, self.plan.notice, self.inputs, state
        )

    # -- what else a method may ask for -------------------------------------------------------------------------------

    def group(
        self, vectors: Tensor, labels: Tensor, *, source: VectorSource, devices: bool, accumulation: bool
    ) -> tuple[Tensor, Tensor]:
        """The rows of all batches and processes, this one's with a gradient; see `Step.group`."""
        world = dist.get_world_size() if devices and dist.is_initialized() else 1
        whole = accumulation and self.cell is not None
        self._say_what_does_nothing(devices and world == 1, accumulation and not whole)
        if world == 1 and not whole:
            return vectors, labels
        others: list[tuple[Tensor, Tensor]] = []
        place = 0
        if self.cell is not None and whole:
            group, place = self.cell
            cells = [(v[source], b) for v, b in zip(group.vectors, group.labels, strict=True)]
            others = cells[:place] + cells[place + 1 :]
        rows, row_labels, where = joined(vectors, labels, others=others, place=place, devices=devices)
        if whole:
            factor: Tensor | float = _divided(world, self.share)  # the whole group is one term of weight 1
        elif isinstance(self.share, Tensor):  # one group per micro-batch, weighed by the items of all processes
            factor = _divided(self.plan.count(row_labels), self.plan.count(labels))
        else:
            factor = world
        return live(rows, vectors, where, factor), row_labels

    def _say_what_does_nothing(self, devices: bool, accumulation: bool) -> None:
        assert self.method is not None
        if devices:
            self.notice(f"{self.method.key}.gather_across_devices has no effect: there is one process.")
        if accumulation:
            self.notice(
                f"{self.method.key}.gather_across_accumulation has no effect: there is one batch per optimizer step, "
                "or accumulate() was not used."
            )

    def over_processes(self, value: Tensor) -> Tensor:
        """Mean of a scalar over all processes; see `Step.over_processes`."""
        if not dist.is_initialized():
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    def generator(self, *key: int | str) -> torch.Generator:
        """The current method's stream at this step; see `Step.generator`."""
        assert self.method is not None
        device, plan = self.labels.device, self.plan
        return keyed_generator(device, plan.seed, self.method.key, self.number, rank(), "loss", *key)

    def report(self, name: str, value: Tensor | float) -> None:
        """Telemetry of the current method."""
        assert self.method is not None
        self._report(self.method, name, value)

    def _report(self, method: Method, name: str, value: Tensor | float) -> None:
        tensor = torch.as_tensor(value, dtype=torch.float32, device=self.labels.device).detach()
        self.telemetry.setdefault(f"{method.key}/{name}", []).append(tensor)

    def notice(self, text: str) -> None:
        """A sentence for the log and the record."""
        self.plan.notice(text)


def take(step: TrainingStep) -> StepOutput:
    """A step, at the weights where a method wants it taken.

    Args:
        step: no pass of it has run.
    """
    weights = {name: weight for name, weight in step.plan.weights.items() if weight.requires_grad}
    for method in step.plan.methods:
        if method.moves_weights:
            step.method = method
            step.moved = method.moved_weights(step, weights, lambda: _rehearsed(step, weights))
    return step.compute()


def _rehearsed(step: TrainingStep, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients of a step that is taken elsewhere afterwards, with the same dropout and the same draws."""
    rehearsal = TrainingStep(
        step.plan,
        step.number,
        step.runner,
        step.batch,
        step.labels,
        step.per_text,
        step.share,
        method=step.method,
        rehearsal=True,
    )
    rehearsal.autocast, rehearsal.compute_dtype = step.autocast, step.compute_dtype  # made where autocast is off
    try:
        found = rehearsal.gradients(weights)
    finally:
        rehearsal.forget()
    step.main_start = rehearsal.main_start
    step.passes.add(**vars(rehearsal.passes))
    return found


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(
        a is b or (not isinstance(a, Tensor) and a == b) for a, b in zip(one, other, strict=True)
    )


def _divided(dividend: Tensor | float, divisor: Tensor | float) -> Tensor | float:
    """A quotient that is 0 where nothing in this batch is labelled, so that nothing flows back from it."""
    if not isinstance(divisor, Tensor):
        return dividend / divisor
    return torch.where(divisor > 0, dividend / divisor, 0.0)
