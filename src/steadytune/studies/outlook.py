"""What a study will do, before it does it: steps, pass units, time, refusals, and what the data look like."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadytune.data import Dataset
from steadytune.data.checks import DataReport, data_report
from steadytune.data.sampling import contents
from steadytune.recipes import RunConfig
from steadytune.studies.plan import Plan, PlanError
from steadytune.training.diagnosis import Trial
from steadytune.training.fit import planned_steps
from steadytune.training.loading import revision
from steadytune.training.prepare import Prepared, dataset_of, methods_of, prepare, selection_of
from steadytune.training.robustness import robustness_rows

_PLAIN_UNITS = 3.0
_OVERHEAD_SECONDS = 3.0  # of a run: loading the model, tokenizing, writing
Place = tuple[str, str, str]
"""Task, protocol and recipe."""


@dataclass(frozen=True)
class Outlook:
    """What a plan comes to.

    Attributes:
        steps: optimizer steps by place, at equal steps.
        equal_compute_steps: `run.steps` by place that gives every recipe of a task the same pass units.
        units_per_step: pass units of one optimizer step by place; plain has 3 per batch.
        seconds: estimated time of one run by place, at equal steps.
        equal_compute_seconds: the same at equal pass units.
        data: what the data look like, by task and protocol.
        scored: text and second text ("" without one) of the test rows of all seeds, by task and row id.
        fingerprints: of the rows of each split, by task, protocol and seed.
        model_revisions: of every model that a recipe starts from, by its name.
    """

    steps: Mapping[Place, int]
    equal_compute_steps: Mapping[Place, int]
    units_per_step: Mapping[Place, float]
    seconds: Mapping[Place, float]
    equal_compute_seconds: Mapping[Place, float]
    data: Mapping[tuple[str, str], DataReport]
    scored: Mapping[str, Mapping[str, tuple[str, str]]]
    fingerprints: Mapping[tuple[str, str], Mapping[int, Mapping[str, str]]]
    model_revisions: dict[str, str]


def look_ahead(plan: Plan) -> Outlook:
    """Read the data and load the model of every task, and take one step with every recipe.

    Args:
        plan: what will run.
    Raises:
        PlanError: a recipe cannot act on a task; the sentence names both. Or one of several processes of a launcher.
        DataError: the data cannot be used.
        RunError: the model cannot be had.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PlanError("a study divides its runs by itself; start it without a launcher, with --workers or --ray.")
    steps: dict[Place, int] = {}
    fair: dict[Place, int] = {}
    units: dict[Place, float] = {}
    seconds: dict[Place, float] = {}
    fair_seconds: dict[Place, float] = {}
    longer: dict[Place, float] = {}
    once: dict[Place, float] = {}  # units before the first step
    data = {}
    scored: dict[str, dict[str, tuple[str, str]]] = {}
    prints: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    revisions: dict[str, str] = {}
    for task in plan.tasks:
        for protocol in plan.protocols:
            places = []
            for recipe, _ in plan.arms():
                config = plan.config(task, protocol, recipe, plan.seed_list[0])
                ready = prepare(config)
                if (task, protocol) not in data:
                    data[task, protocol] = data_report(ready.dataset, ready.selection)
                    prints[task, protocol], texts = _rows_of_seeds(config, ready.dataset, plan.seed_list)
                    scored.setdefault(task, {}).update(texts)
                    asked = robustness_rows(plan.robustness(task), ready.task, ready.selection.train)
                    plain = Trial(ready.model, (), _batch(ready, config), ready.task)
                    plain.seconds()
                    plain_seconds = plain.seconds()
                if config.model not in revisions:
                    revisions[config.model] = revision(ready.source, ready.model.config)
                place = (task, protocol, recipe.name)
                places.append(place)
                batches = math.ceil(len(ready.rows["train"]) / plan.run.batch_size)
                steps[place] = planned_steps(plan.run, batches, recipe.longer)
                longer[place] = recipe.longer
                units[place] = plan.run.accumulation_steps * _units(ready, config)
                surveyed = max((m.rows_to_survey(len(ready.rows["train"])) for m in methods_of(config)), default=0)
                once[place] = _PLAIN_UNITS * math.ceil(surveyed / plan.run.batch_size)
            most = max(steps[place] * units[place] + once[place] for place in places)
            rows = sum(len(ready.rows[name]) for name in ("dev", "test")) + sum(len(one.rows) for one in asked)
            evaluated = rows / plan.run.batch_size / _PLAIN_UNITS
            before = _steps_before(config)
            for place in places:
                afforded = (most - once[place]) / units[place]
                fair[place] = max(1, round(afforded / longer[place]))  # before the recipe's own factor
                own = units[place] / _PLAIN_UNITS * plain_seconds
                fixed = _OVERHEAD_SECONDS + (evaluated + once[place] / _PLAIN_UNITS) * plain_seconds
                seconds[place] = (steps[place] + before) * own + fixed
                fair_seconds[place] = (longer[place] * fair[place] + before) * own + fixed
    return Outlook(steps, fair, units, seconds, fair_seconds, data, scored, prints, revisions)


def _steps_before(config: RunConfig) -> int:
    """Optimizer steps of the run that a run starts from; several protocols may share it, so this is a bound."""
    if config.after is None:
        return 0
    rows = selection_of(config.first, dataset_of(config.first)).train
    return planned_steps(config.run, math.ceil(len(rows) / config.run.batch_size), config.recipe.longer)


def _rows_of_seeds(
    config: RunConfig, dataset: Dataset, seeds: Sequence[int]
) -> tuple[dict[int, dict[str, str]], dict[str, tuple[str, str]]]:
    """Fingerprints of the rows by seed, and the texts of all test rows, which may differ from seed to seed."""
    prints: dict[int, dict[str, str]] = {}
    texts: dict[str, tuple[str, str]] = {}
    for seed in seeds:
        rows = selection_of(config.model_copy(update={"seed": seed}), dataset)
        prints[seed] = rows.fingerprints()
        test = rows.test
        texts.update(zip(test.ids, contents(test), strict=True))
    return prints, texts


def _batch(ready: Prepared, config: RunConfig) -> dict[str, Any]:
    """A batch of rows of middling length."""
    rows = ready.rows["train"]
    order = sorted(range(len(rows)), key=rows.lengths.__getitem__)
    start = max(0, (len(order) - config.run.batch_size) // 2)
    return ready.collator([rows[row] for row in order[start : start + config.run.batch_size]])


def _units(ready: Prepared, config: RunConfig) -> float:
    """Pass units of one batch."""
    try:
        trial = Trial(ready.model, methods_of(config), _batch(ready, config), ready.task)
        trial.seconds()
    except ValueError as reason:
        raise PlanError(f"recipe {config.recipe.name!r} on {config.data.source}: {reason}") from None
    return trial.passes["units"]
