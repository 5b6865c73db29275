"""Sequential transfer: a run that starts from the model of another one."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from steadytune.recipes import DataSettings, RecipeError, RunConfig
from steadytune.recipes.recipe import validated
from steadytune.records import read_record
from steadytune.studies import Plan
from steadytune.studies.execute import open_store
from steadytune.studies.executors import Agenda, run_here
from steadytune.training.fit import Progress, fit
from toyrun import recipe_of, run_of, write_data, write_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the rows of two tasks that share their labels."""
    folder = tmp_path_factory.mktemp("transfer")
    write_model(folder / "encoder")
    write_data(folder / "films")
    write_data(folder / "books")
    return folder


def transfer(place: Path, recipe: str = "plain", **data: Any) -> RunConfig:
    """Films first, then books."""
    run = run_of(place / "books", place / "encoder", recipe_of(recipe))
    return run.model_copy(update={"after": DataSettings(source=str(place / "films"), **data)})


def logits(folder: Path) -> list[list[float]]:
    found: list[list[float]] = pq.read_table(folder / "predictions.parquet")["logits"].to_pylist()
    return found


def test_it_equals_two_runs_by_hand(place: Path, tmp_path: Path) -> None:
    config = transfer(place)
    fit(config, tmp_path / "both")
    fit(config.first, tmp_path / "one")
    by_hand = config.model_copy(update={"model": str(tmp_path / "one"), "after": None})
    fit(by_hand, tmp_path / "two")
    assert logits(tmp_path / "both") == logits(tmp_path / "two")


def test_the_record_says_what_came_before_and_what_is_asked_again(place: Path, tmp_path: Path) -> None:
    record = fit(transfer(place), tmp_path / "run")
    assert record.model_name == f"encoder after {place / 'films'}"
    trained = {line.casefold() for line in _texts(place / "films" / "train.csv")}
    again = sum(line.casefold() in trained for line in _texts(place / "books" / "test.csv"))
    assert f"the model was trained before on 48 rows of {place / 'films'}" in record.data_notes
    said = f"{again} test rows stand among those, but for case and white space"
    assert (said in record.data_notes) == (again > 0)


def _texts(path: Path) -> list[str]:
    return [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()[1:]]


def test_a_run_interrupted_in_its_second_part_does_not_repeat_the_first(place: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_in_the_second(progress: Progress) -> None:
        if (tmp_path / "run" / "first" / "record.json").exists() and progress.phase == "train" and progress.step == 6:
            raise Stop

    with pytest.raises(Stop):
        fit(transfer(place), tmp_path / "run", watch=stop_in_the_second)
    before = (tmp_path / "run" / "first" / "record.json").stat().st_mtime_ns
    record = fit(transfer(place), tmp_path / "run")
    assert (tmp_path / "run" / "first" / "record.json").stat().st_mtime_ns == before
    assert record.resumed_from_step == 4
    fit(transfer(place), tmp_path / "unbroken")
    assert logits(tmp_path / "run") == logits(tmp_path / "unbroken")


def plan(place: Path, **changes: Any) -> Plan:
    after = {"source": str(place / "films"), "train_rows": 24}
    wanted = {
        "model": str(place / "encoder"),
        "tasks": {"books": {"source": str(place / "books")}},
        "protocols": {"1 shot": {"k_shot": 1, "after": after}, "2 shot": {"k_shot": 2, "after": after}},
        "recipes": ["plain", "hype"],
        "seeds": 1,
        "run": {"min_steps": 2, "epochs": 1, "batch_size": 8, "max_length": 16},
    }
    return validated(Plan, {**wanted, **changes}, "plan")


def test_protocols_of_a_study_share_what_comes_before(place: Path, tmp_path: Path) -> None:
    study = plan(place)
    store = open_store(study, tmp_path / "out")
    run_here(Agenda(study, {}, {}), store)
    assert {record.status for record in store.records().values()} == {"done"}
    assert len(store.records()) == 4
    first = [read_record(path) for path in (tmp_path / "out" / "models").glob("*/record.json")]
    assert sorted(record.config["recipe"]["name"] for record in first) == ["hype", "plain"]  # not one per cell


def test_what_comes_before_is_made_again_if_its_weights_are_gone(place: Path, tmp_path: Path) -> None:
    study = plan(place, recipes=["plain"])
    store = open_store(study, tmp_path / "out")
    run_here(Agenda(study, {}, {}), store)
    scores = {cell: record.scores for cell, record in store.records().items()}
    store.record_path(study.cells()[0].id).unlink()
    assert not any((tmp_path / "out" / "models").glob("*/model"))
    run_here(Agenda(study, {}, {}), store)
    assert {cell: record.scores for cell, record in store.records().items()} == scores


def test_cells_of_a_failed_first_run_fail_by_name(place: Path, tmp_path: Path) -> None:
    study = plan(
        place, recipes=["plain"], run={"min_steps": 2, "learning_rate": 1e30, "batch_size": 8, "max_length": 16}
    )
    store = open_store(study, tmp_path / "out")
    run_here(Agenda(study, {}, {}), store)
    assert {record.failure for record in store.records().values()} == {
        "the run that this one starts from failed: training diverged: the trained model gives scores that are not "
        "finite"
    }


def test_equal_compute_is_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match="a protocol with `after` trains twice"):
        plan(place, budget="equal-compute")
