"""A look inside a trained model, layer by layer: noise, what can be read of the labels, where attention goes."""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from steadytune.data.batching import PaddingCollator
from steadytune.encoders import Edits, PassOutput, PassRunner, Sites, describe, stability_curve
from steadytune.methods.asa import ASA
from steadytune.objective import RegularizedModel
from steadytune.objective.step import StepPlan, TrainingStep
from steadytune.tasks import Encoded

logger = logging.getLogger("steadytune")

_NOISE_ROWS = 32
_PROBE_ROWS = 500  # to train a probe, and as many to test it
_PROBE_STEPS = 200  # of its optimizer; the same for every layer, finished or not
_SHOWN_ROWS, _SHOWN_TOKENS = 2, 24  # of attention, as many as a figure can hold
_DIGITS = 6


def measured_layers(
    wrapper: RegularizedModel, rows: Mapping[str, Encoded], collator: PaddingCollator, batch_size: int = 64
) -> dict[str, Any]:
    """Stability, probing accuracy and attention, by layer, in evaluation mode, as plain JSON values.

    "stability" has the noise ratio at the output of each layer (see `stability_curve`), null below the layer where
    the noise enters. "probing" has, for the states that enter each layer and those that leave the last one, the test
    accuracy of logistic regression on their mean over the tokens; null without two classes. "attention" has two test
    rows, each with weights of the last layer, mean over its heads, and what ASA's adversary keeps of them (1) or hides
    (0), null without ASA; long rows are cut after their pass.

    Args:
        wrapper: the trained model, closed; model, methods and random streams stay as they are.
        rows: tokenized rows, "train" and "test", with labels.
        collator: pads a batch.
        batch_size: rows of one forward pass.
    Raises:
        RuntimeError: the wrapper is open.
    """
    model, test = wrapper.model, rows["test"]
    with _evaluation(model):
        return {
            "stability": _stability(model, test, collator),
            "probing": _probing(model, rows, collator, batch_size) if wrapper.task.has_classes else None,
            "attention": _attention(wrapper, test, collator),
        }


def shown_tokens(found: Mapping[str, Any], rows: Encoded, tokenizer: Any) -> dict[str, list[str]]:
    """The tokens of the rows whose attention was measured, by id of the row.

    Args:
        found: from `measured_layers`.
        rows: the test rows.
        tokenizer: that made them.
    """
    places = {row: place for place, row in enumerate(rows.ids)}
    shown = ((entry["id"], len(entry["weights"])) for entry in found["attention"])
    return {row: tokenizer.convert_ids_to_tokens(rows.input_ids[places[row]][:count]) for row, count in shown}


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _spread(rows: Encoded, count: int) -> list[int]:
    """At most so many places at equal distances: rows that are sorted by label give every label."""
    return sorted({round(place) for place in np.linspace(0, len(rows) - 1, min(count, len(rows)))})


def _batch(model: nn.Module, rows: Encoded, places: Sequence[int], collator: PaddingCollator) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in collator([rows[i] for i in places]).items()}


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


# -- stability and probing --------------------------------------------------------------------------------------------


def _stability(model: nn.Module, rows: Encoded, collator: PaddingCollator) -> list[float | None] | None:
    parts = describe(model)
    first = parts.first_resume
    if first >= parts.depth:
        logger.warning("stability is left out: noise can enter this %s nowhere below its top.", parts.family.name)
        return None
    inputs = _inputs(_batch(model, rows, _spread(rows, _NOISE_ROWS), collator))
    curve: list[float | None] = [None] * first
    ratios = stability_curve(model, inputs, layer=first).tolist()
    return curve + [ratio if math.isfinite(ratio) else None for ratio in ratios]


def _probing(
    model: nn.Module, rows: Mapping[str, Encoded], collator: PaddingCollator, batch_size: int
) -> dict[str, Any] | None:
    states, labels = {}, {}
    for name in ("train", "test"):
        places = _spread(rows[name], _PROBE_ROWS)
        labels[name] = np.asarray(rows[name].labels)[places]
        if name == "train" and len(np.unique(labels[name])) < 2:
            logger.warning("probing is left out: the training rows have one class.")
            return None
        states[name] = _mean_states(model, rows[name], places, collator, batch_size)
    accuracy = []
    for train, test in zip(states["train"], states["test"], strict=True):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_PROBE_STEPS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(train, labels["train"])
        accuracy.append(float((probe.predict(test) == labels["test"]).mean()))
    return {"layers": list(range(len(accuracy))), "accuracy": accuracy}


def _mean_states(
    model: nn.Module, rows: Encoded, places: Sequence[int], collator: PaddingCollator, batch_size: int
) -> np.ndarray:
    """Mean over the real tokens, (layers + 1, rows, dim), in the order of `places`."""
    order = np.argsort([rows.lengths[place] for place in places], kind="stable")  # batches of like length
    parts = []
    with closing(Sites(model)) as sites:
        runner = PassRunner(model, sites)
        for start in range(0, len(order), batch_size):
            inputs = _inputs(_batch(model, rows, [places[i] for i in order[start : start + batch_size]], collator))
            real = inputs["attention_mask"].bool()[..., None]
            hidden = runner.run(inputs).hidden
            means = [torch.where(real, hidden[i], 0.0).sum(dim=1) / real.sum(dim=1) for i in sorted(hidden)]
            parts.append(torch.stack(means).double().cpu().numpy())
    result = np.concatenate(parts, axis=1)
    return result[:, np.argsort(order)]


# -- attention --------------------------------------------------------------------------------------------------------


def _attention(wrapper: RegularizedModel, rows: Encoded, collator: PaddingCollator) -> list[dict[str, Any]]:
    parts = describe(wrapper.model)
    eager: Any = copy.deepcopy(wrapper.model)  # faster implementations keep no weights
    eager.set_attn_implementation("eager")
    found = []
    for place in _middling(rows.lengths):
        batch = _batch(wrapper.model, rows, [place], collator)
        attentions = eager(**_inputs(batch), output_attentions=True).attentions
        if not attentions or attentions[-1] is None:
            logger.warning("attention is left out: %s gives no attention weights.", parts.family.name)
            return []
        keep = _kept(wrapper, batch, parts.depth - 1)
        entry = {
            "id": rows.ids[place],
            "weights": _square(attentions[-1][0]),
            "layer": parts.depth - 1,
            "keep": None if keep is None else _square(keep[0]),
        }
        found.append(entry)
    return found


def _middling(lengths: Sequence[int]) -> list[int]:
    """Places of the rows to show: whole ones if there are any, of a length near the median."""
    median = float(np.median(lengths))
    return sorted(range(len(lengths)), key=lambda i: (lengths[i] > _SHOWN_TOKENS, abs(lengths[i] - median), i))[
        :_SHOWN_ROWS
    ]


def _square(heads: Tensor) -> list[list[float]]:
    """Mean over the heads, of the first tokens."""
    mean = heads.double().mean(dim=0)[:_SHOWN_TOKENS, :_SHOWN_TOKENS]
    return [[round(value, _DIGITS) for value in row] for row in mean.tolist()]


def _kept(wrapper: RegularizedModel, batch: Mapping[str, Tensor], layer: int) -> Tensor | None:
    """1 where ASA leaves an attention unit of a layer alone, 0 where it hides it, (batch, heads or 1, tokens, tokens).

    None without ASA, and where it attacks another layer or has not begun.
    """
    method = next((method for method in wrapper.methods if isinstance(method, ASA)), None)
    if method is None:
        return None
    with closing(Sites(wrapper.model)) as sites:
        plan = StepPlan(
            methods=(method,),
            modules={},
            task=wrapper.task,
            anatomy=sites.anatomy,
            coefficients=wrapper.coefficients,
            seed=wrapper.seed,
            resume_at=frozenset(),
            first=False,
            count=wrapper.task.count,
            weights={},
            parameters=(),
            notice=lambda text: None,
        )
        step = TrainingStep(
            plan,
            wrapper.micro_steps,
            PassRunner(wrapper.model, sites),
            _inputs(batch),
            batch["labels"],
            method=method,
        )
        biases: dict[int, Tensor] = {}
        setattr(step, "run", partial(_overheard_run, step.run, biases))  # noqa: B010 - on this one step
        own = dict(wrapper.method_modules.items()).get(method.key)
        method.loss(step, copy.deepcopy(own))  # it may steer the price, which belongs to training
        step.forget()
    bias = biases.get(layer)
    return None if bias is None else (bias == 0).double()


def _overheard_run(
    run: Callable[..., PassOutput], biases: dict[int, Tensor], name: str, *, edits: Edits | None = None, **options: Any
) -> PassOutput:
    """`TrainingStep.run` that keeps what is added to the attention scores of each layer."""
    inner = None if edits is None else edits.attention
    if edits is None or inner is None:
        return run(name, edits=edits, **options)

    def attention(layer: int, states: Tensor, mask: Tensor | None) -> Tensor | None:
        bias = inner(layer, states, mask)
        if bias is not None:
            biases[layer] = bias
        return bias

    return run(name, edits=replace(edits, attention=attention), **options)
