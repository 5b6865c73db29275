"""What each method does to one model, here: whether it can act, how much it changes a step, what the step costs."""

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steadytune.data import load_dataset, select
from steadytune.data.batching import PaddingCollator
from steadytune.encoders import SiteUnavailable
from steadytune.methods import METHODS, Method, MethodError
from steadytune.objective import RegularizedModel
from steadytune.recipes import load_recipe
from steadytune.tasks import Classification, Regression, Task, encode_texts

_ROUNDS = 3


@dataclass(frozen=True)
class Diagnosis:
    """One method with the settings of its bundled recipe, on one batch.

    Attributes:
        verdict: "can act", or why not.
        gradient_change: ‖g − g₀‖ / ‖g₀‖ over the encoder's parameters, g what one step of gradient descent at learning
            rate 1 takes away and g₀ that of a plain step at the same dropout draw; None if it cannot act.
        step_time_ratio: median time of forward and backward over that of a plain step, in turn; None if it cannot act.
        passes: forward passes and pass units of the step; plain has 1 and 3.
        telemetry: what the method reports about the step.
    """

    verdict: str
    gradient_change: float | None = None
    step_time_ratio: float | None = None
    passes: Mapping[str, float] = field(default_factory=dict)
    telemetry: Mapping[str, float] = field(default_factory=dict)


def sample_batch(tokenizer: Any, *, rows: int = 16, max_length: int = 64) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A batch of the bundled sample, and the names of its classes.

    Args:
        tokenizer: of the model.
        rows: number of examples.
        max_length: most tokens of an example.
    """
    dataset = load_dataset("sample")
    chosen = select(dataset, train_rows=rows, seed=0)
    encoded = encode_texts(chosen.train, tokenizer, max_length)
    collate = PaddingCollator(tokenizer, Classification.label_dtype)
    return collate([encoded[row] for row in range(rows)]), dataset.label_names


def diagnose(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Diagnosis]:
    """Every method on one model.

    Args:
        model: a Hugging Face model for classification, not wrapped; its weights stay as they are.
        batch: keyword arguments of its forward, labels included.
    """
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    before = model.training
    try:
        plain = Trial(model, (), batch)
        reference = plain.descent()
        return {key: _diagnose(model, key, batch, plain, reference) for key in METHODS}
    finally:
        model.train(before)
        model.zero_grad()


def _diagnose(
    model: Any, key: str, batch: Mapping[str, Tensor], plain: "Trial", reference: dict[str, Tensor]
) -> Diagnosis:
    methods = load_recipe(key).build()
    refusals = [_refusal(model, methods, task) for task in (None, Regression())]
    if refusals[0]:
        return Diagnosis(refusals[0])
    trial = Trial(model, methods, batch)
    try:
        change = _distance(trial.descent(), reference)
        ratios = [trial.seconds() / plain.seconds() for _ in range(_ROUNDS)]
    except (MethodError, SiteUnavailable) as reason:  # what only shows when a step runs
        return Diagnosis(str(reason))
    verdict = f"can act on classification; {refusals[1]}" if refusals[1] else "can act"
    return Diagnosis(verdict, change, statistics.median(ratios), trial.passes, trial.telemetry)


def _refusal(model: Any, methods: Sequence[Method], task: Task | None) -> str:
    try:
        RegularizedModel(copy.deepcopy(model), methods, task=task).close()
    except (MethodError, SiteUnavailable) as reason:
        return str(reason)
    return ""


class Trial:
    """Steps of one model with some methods; each starts from the same random state and weights.

    Args:
        model: not wrapped; its weights stay as they are.
        methods: regularizers.
        batch: keyword arguments of its forward, labels included.
        task: what is trained; inferred from the model if not given.
    """

    def __init__(
        self, model: Any, methods: Sequence[Method], batch: Mapping[str, Tensor], task: Task | None = None
    ) -> None:
        self.model, self.methods, self.batch, self.task = model, methods, batch, task
        self.passes: dict[str, float] = {}
        self.telemetry: dict[str, float] = {}

    def descent(self) -> dict[str, Tensor]:
        """What one step of gradient descent at learning rate 1 takes away from each parameter, by name."""
        model = copy.deepcopy(self.model)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        wrapper, optimizer = self._begin(model)
        wrapper(**self.batch).loss.backward()
        optimizer.step()
        wrapper.finish()
        wrapper.close()
        self.telemetry = {
            name.split("/", 1)[1]: value
            for name, value in wrapper.drain_telemetry().items()
            if "/" in name and not name.endswith("/term")
        }
        return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}

    def seconds(self) -> float:
        """Wall time of forward and backward of one step; keeps its passes."""
        changes = any(method.setup_order < 3 for method in self.methods)
        model = copy.deepcopy(self.model) if changes else self.model
        wrapper, _ = self._begin(model)
        try:
            start = time.perf_counter()
            output = wrapper(**self.batch)
            output.loss.backward()
            if next(model.parameters()).device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        finally:
            wrapper.close()
        self.passes = {"forward": output.passes.forward, "units": output.passes.units}
        return seconds

    def _begin(self, model: Any) -> tuple[RegularizedModel, torch.optim.Optimizer]:
        """A wrapper with all that its methods ask for before the first step."""
        wrapper = RegularizedModel(model, self.methods, task=self.task).train()
        try:
            optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=1.0))
            wrapper.attach(optimizer, total_updates=1)
            if wrapper.wants_survey:
                wrapper.survey([{name: value[:4] for name, value in self.batch.items()}])
        except BaseException:
            wrapper.close()
            raise
        wrapper.zero_grad()
        torch.manual_seed(0)
        return wrapper, optimizer


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    difference = torch.stack([(one[name] - other[name]).norm() for name in other]).norm()
    return float(difference / torch.stack([value.norm() for value in other.values()]).norm())
