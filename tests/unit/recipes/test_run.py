"""Run files: what is saved is what is read, and defaults depend on the encoder alone."""

import re
from pathlib import Path
from typing import Any

import pytest

from steadytune.recipes import DataSettings, RecipeError, RunConfig, RunSettings, load_recipe, load_run, save_run


def config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {"data": DataSettings(source="sample"), "recipe": load_recipe("scl+hype"), **changes}
    return RunConfig(**values)


FULL = {
    "data": DataSettings(source="où/är.csv", text_column="Text", pair_column="", task="regression", fraction=0.3),
    "model": "some/encoder",
    "run": RunSettings(epochs=0.5, learning_rate=1e-5, examples_per_class=2, precision="bfloat16"),
    "seed": 2**31 - 1,
}


@pytest.mark.parametrize("changes", [{}, FULL], ids=["defaults", "everything set"])
def test_a_run_survives_saving_and_loading(changes: dict[str, Any], tmp_path: Path) -> None:
    save_run(config(**changes), tmp_path / "run.yaml")
    assert load_run(tmp_path / "run.yaml") == config(**changes)


def test_saving_leaves_no_other_file(tmp_path: Path) -> None:
    save_run(config(), tmp_path / "run.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_run_file_that_is_missing_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^run file nowhere\.yaml does not exist\.$"):
        load_run("nowhere.yaml")


def test_a_misspelt_entry_of_a_run_file_is_suggested(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {source: sample}\nrecipe: {name: plain}\nrun: {batch_sise: 4}\n")
    expected = f"{path}: unknown entry run.batch_sise; did you mean 'batch_size'?"
    with pytest.raises(RecipeError, match=f"^{re.escape(expected)}$"):
        load_run(path)


@pytest.mark.parametrize(("model", "rate"), [("bundled", 1e-4), ("some/encoder", 2e-5)])
def test_the_learning_rate_follows_the_encoder(model: str, rate: float) -> None:
    assert config(model=model).learning_rate == rate


@pytest.mark.parametrize("model", ["bundled", "some/encoder"])
def test_a_given_learning_rate_wins(model: str) -> None:
    assert config(model=model, run=RunSettings(learning_rate=3e-4)).learning_rate == 3e-4


def test_one_run_setting_can_be_changed() -> None:
    assert config().with_run_setting("batch_size", 4) == config(run=RunSettings(batch_size=4))


def test_a_run_setting_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"^run\.batch_size must be greater than or equal to 1; got 0\.$"):
        config().with_run_setting("batch_size", 0)


def test_more_examples_per_class_than_rows_in_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.examples_per_class must be at most run\.batch_size, 4; got 5\."):
        config(run=RunSettings(batch_size=4, examples_per_class=5))
