"""What a study's folder says about the study itself, beside its records; a report needs nothing else."""

from collections.abc import Iterable, Mapping
from typing import Any

from steadytune.recipes import Recipe, load_recipe
from steadytune.records import StudyStore
from steadytune.studies.outlook import Outlook
from steadytune.studies.plan import Cell, Plan, controls_of
from steadytune.studies.search import chains


def write_overview(store: StudyStore, plan: Plan, outlook: Outlook, command: str) -> None:
    """Write which runs are planned, what the data look like, and the texts that a local report may show.

    Args:
        store: of the study.
        plan: what will run.
        outlook: of the plan.
        command: that repeats the study.
    """
    cells = plan.cells(dict(outlook.equal_compute_steps))
    searched = {cell.id for chain in chains(plan, cells) for cell in chain.finals}
    isolates = _isolates(plan)
    planned = []
    for cell in cells:
        place: dict[str, Any] = cell.place()
        place["id"] = None if cell.id in searched else cell.id
        if cell.role == "control" or cell.recipe in isolates:
            place["isolates"] = isolates.get(cell.recipe, [])
        planned.append(place)
    store.write_overview(
        {
            "name": plan.name,
            "command": command,
            "model": plan.model,
            "budget": plan.budget,
            "cells": planned,
            "data": [
                {"task": task, "protocol": protocol, "report": report.as_dict(), "notes": report.notes()}
                for (task, protocol), report in outlook.data.items()
            ],
        }
    )
    for task, texts in outlook.scored.items():
        store.write_texts(task, texts)


def name_final_runs(store: StudyStore, cells: Iterable[Cell]) -> None:
    """Write which record is that of each planned run, now that the search has chosen all settings.

    Args:
        store: of the study.
        cells: the final runs.
    """
    ids = {_key(cell.place()): cell.id for cell in cells}
    overview = store.read_overview()
    for place in overview["cells"]:
        place["id"] = ids.get(_key(place), place["id"])
    store.write_overview(overview)


def _key(place: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(place[name] for name in ("task", "protocol", "recipe", "role", "budget", "seed"))


def _isolates(plan: Plan) -> dict[str, list[str]]:
    """Recipes whose gain a control takes apart, by the name of the control.

    It does so for one method at the settings of its bundled recipe, since those are the control's: not for stacks, nor
    for settings that were changed or are searched. The second baseline is held against every recipe.
    """
    searched = {name.partition(".")[0] for name in plan.search.space} if plan.search else set()
    found: dict[str, list[str]] = {}
    second = plan.second()
    baseline, *others = plan.arms()
    for recipe, role in others:
        if role != "recipe":
            continue
        controls = [] if second is None else [second.name]
        if len(recipe.methods) == 1 and not searched & recipe.methods.keys() and _bundled(recipe):
            controls += controls_of(recipe)
        for control in dict.fromkeys(controls):
            if control not in (recipe.name, baseline[0].name):
                found.setdefault(control, []).append(recipe.name)
    return found


def _bundled(recipe: Recipe) -> bool:
    (key,) = recipe.methods
    known = load_recipe(key)
    return known.build() == recipe.build() and known.dropout == recipe.dropout
