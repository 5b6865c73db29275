"""What a study says of itself: which record is whose, and which gain a control takes apart."""

from pathlib import Path
from typing import Any

import pytest

from steadytune.recipes.recipe import validated
from steadytune.records import StudyStore
from steadytune.studies.outlook import Outlook
from steadytune.studies.overview import name_final_runs, write_overview
from steadytune.studies.plan import Plan
from steadytune.studies.search import changed, with_settings

NOTHING_KNOWN = Outlook({}, {}, {}, {}, {}, {}, {}, {}, {})


def plan(**changes: Any) -> Plan:
    values = {"tasks": {"sample": {"source": "sample"}}, "recipes": ["plain", "hype"], "controls": True, "seeds": 1}
    return validated(Plan, {**values, **changes}, "plan")


def written(folder: Path, wanted: Plan) -> dict[str, dict[str, Any]]:
    """The planned runs by recipe."""
    store = StudyStore(folder)
    write_overview(store, wanted, NOTHING_KNOWN, "steadytune study plan.yaml")
    return {cell["recipe"]: cell for cell in store.read_overview()["cells"]}


def test_every_planned_run_names_its_record(tmp_path: Path) -> None:
    wanted = plan()
    assert {name: cell["id"] for name, cell in written(tmp_path, wanted).items()} == {
        cell.recipe: cell.id for cell in wanted.cells()
    }


def test_a_run_that_waits_for_a_search_is_named_when_its_settings_are_chosen(tmp_path: Path) -> None:
    wanted = plan(search={"trials": 2, "space": {"run.learning_rate": [1e-4, 1e-3]}})
    assert {cell["id"] for cell in written(tmp_path, wanted).values()} == {None}
    settings = {"run.learning_rate": 1e-3}
    final = [changed(cell, config=with_settings(cell.config, settings)) for cell in wanted.cells()]
    name_final_runs(StudyStore(tmp_path), final)
    assert [cell["id"] for cell in StudyStore(tmp_path).read_overview()["cells"]] == [cell.id for cell in final]


def test_a_control_takes_the_gain_of_its_method_apart(tmp_path: Path) -> None:
    assert written(tmp_path, plan())["hype-control"]["isolates"] == ["hype"]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipes": ["plain", "scl+hype"]},
        {"search": {"trials": 1, "space": {"run.learning_rate": [1e-3], "hype.noise_std": [1e-3]}}},
    ],
    ids=["stack", "searched"],
)
def test_no_control_isolates_a_stack_or_settings_that_are_not_its_own(changes: dict[str, Any], tmp_path: Path) -> None:
    assert written(tmp_path, plan(**changes))["hype-control"]["isolates"] == []


def test_no_control_isolates_a_method_whose_settings_were_changed(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nmethods: {hype: {noise_std: 0.5}}\ndropout: {hidden: 0.0}\n")
    assert written(tmp_path / "out", plan(recipes=["plain", str(own)]))["hype-control"]["isolates"] == []


def test_the_second_baseline_takes_every_gain_apart_that_of_a_stack_too(tmp_path: Path) -> None:
    wanted = plan(recipes=["plain", "scl+hype", "hype"], second_baseline="strong")
    assert written(tmp_path, wanted)["strong"]["isolates"] == ["scl+hype", "hype"]


def test_a_second_baseline_that_is_judged_too_is_held_against_all_others(tmp_path: Path) -> None:
    wanted = plan(recipes=["plain", "strong", "hype"], second_baseline="strong")
    assert written(tmp_path, wanted)["strong"]["isolates"] == ["hype"]


def test_a_control_of_the_baseline_isolates_nothing(tmp_path: Path) -> None:
    assert written(tmp_path, plan(recipes=["hype", "plain"]))["hype-control"]["isolates"] == []


def test_a_second_baseline_that_is_also_a_control_takes_a_gain_apart_once(tmp_path: Path) -> None:
    wanted = plan(recipes=["plain", "hype", "scl"], second_baseline="hype-control")
    assert written(tmp_path, wanted)["hype-control"]["isolates"] == ["hype", "scl"]


def test_the_baseline_takes_no_gain_apart(tmp_path: Path) -> None:
    assert "isolates" not in written(tmp_path, plan(recipes=["plain", "scl"]))["plain"]  # scl's control is plain
