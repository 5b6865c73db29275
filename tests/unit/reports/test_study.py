"""A study's folder is read as it was planned: runs in their places, lost ones by name."""

import json
from pathlib import Path

import pytest

from steadytune.records import StoreError
from steadytune.reports.study import Arm, Place, read_study
from toystudy import ARMS, make_study

SHOP = Place("shop", "100 rows", "steps")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_study(tmp_path / "study", ["shop"])


def overview(folder: Path, **changes: object) -> None:
    path = folder / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_places_and_arms_are_those_of_the_plan(folder: Path) -> None:
    study = read_study(folder)
    assert study.places == (SHOP,)
    assert study.arms == tuple(Arm(role, recipe) for recipe, role in ARMS.items())


def test_failed_and_missing_runs_are_named(folder: Path) -> None:
    study = read_study(folder)
    assert [(cell.arm.recipe, cell.seed) for cell in study.missing] == [("scl", 5)]
    assert [(cell.arm.recipe, cell.seed) for cell in study.failed] == [("hype", 3)]


def test_a_control_says_what_it_isolates(folder: Path) -> None:
    assert read_study(folder).isolates == {"hype-control": ("hype",)}


def test_runs_that_nobody_planned_are_left_out(folder: Path) -> None:
    cells = [cell for cell in json.loads((folder / "study.json").read_text())["cells"] if cell["seed"] < 2]
    overview(folder, cells=cells)
    assert {cell.seed for cell in read_study(folder).runs} == {0, 1}


def test_runs_of_a_search_are_no_final_runs(folder: Path) -> None:
    path = next((folder / "records").iterdir())
    record = json.loads(path.read_text())
    record["cell"] |= {"role": "trial", "trial": 0}
    (folder / "records" / "trial.json").write_text(json.dumps(record))
    study = read_study(folder)
    assert len(study.trials) == 1
    assert "trial" not in {run.id for run in study.runs.values()}


def test_without_an_overview_the_records_stand_for_the_plan(folder: Path) -> None:
    (folder / "study.json").unlink()
    study = read_study(folder)
    assert (study.listed, len(study.planned), study.missing) == (False, 23, ())


def test_predictions_are_those_of_their_split(folder: Path) -> None:
    study = read_study(folder)
    run = next(iter(study.done(SHOP, Arm("baseline", "plain")).values()))
    found = study.predictions(run, "dev")
    assert found is not None
    assert {row_id.split("-")[0] for row_id in found.ids} == {"dev"}
    assert found.logits.shape == (60, 3)


def test_a_run_without_tables_has_none(folder: Path) -> None:
    study = read_study(folder)
    run = study.runs[next(iter(study.failed))]
    assert (study.predictions(run, "test"), study.pooled(run), study.layers(run)) == (None, None, None)


def test_texts_are_read_where_they_are_kept(folder: Path) -> None:
    study = read_study(folder)
    assert study.texts("shop")["row-3"] == "secret text 3 <b>"
    assert study.texts("similarity") == {}


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        read_study(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": [{"role": "recipe"}]}', '{"cells": 3}'])
def test_a_broken_overview_is_named(folder: Path, text: str) -> None:
    (folder / "study.json").write_text(text)
    with pytest.raises(StoreError, match=r"study\.json"):
        read_study(folder)


def test_a_broken_table_is_named(folder: Path) -> None:
    study = read_study(folder)
    run = next(iter(study.done(SHOP, Arm("baseline", "plain")).values()))
    (folder / "artifacts" / run.id / "predictions.parquet").write_text("no table")
    with pytest.raises(StoreError, match=r"predictions\.parquet is no Parquet file"):
        study.predictions(run, "test")
