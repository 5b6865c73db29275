"""What a study's folder says about the study itself, beside its records; a report needs nothing else."""

from typing import Any

from steadytune.records import StudyStore
from steadytune.studies.outlook import Outlook
from steadytune.studies.plan import Plan, controls_of


def write_overview(store: StudyStore, plan: Plan, outlook: Outlook, command: str) -> None:
    """Write which runs are planned, what the data look like, and the texts that a local report may show.

    Args:
        store: of the study.
        plan: what will run.
        outlook: of the plan.
        command: that repeats the study.
    """
    store.write_overview(
        {
            "name": plan.name,
            "command": command,
            "model": plan.model,
            "budget": plan.budget,
            "cells": _planned(plan, outlook),
            "data": [
                {"task": task, "protocol": protocol, "report": report.as_dict(), "notes": report.notes()}
                for (task, protocol), report in outlook.data.items()
            ],
        }
    )
    for task, texts in outlook.scored.items():
        store.write_texts(task, texts)


def _planned(plan: Plan, outlook: Outlook) -> list[dict[str, Any]]:
    """The place of every run whose test score counts; a control says which recipes it isolates."""
    isolates: dict[str, list[str]] = {}
    for recipe, role in plan.arms():
        for control in controls_of(recipe) if role == "recipe" else ():
            isolates.setdefault(control, []).append(recipe.name)
    places: list[dict[str, Any]] = []
    for cell in plan.cells(dict(outlook.equal_compute_steps)):
        place: dict[str, Any] = cell.place()
        if cell.role == "control":
            place["isolates"] = isolates[cell.recipe]
        places.append(place)
    return places
