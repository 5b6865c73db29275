"""Run files: what is saved is what is read, and defaults depend on the encoder alone."""

import re
from pathlib import Path
from typing import Any

import pytest

from steadytune.recipes import (
    DataSettings,
    Recipe,
    RecipeError,
    RunConfig,
    RunSettings,
    load_recipe,
    load_run,
    protocol_hash,
    save_run,
)
from steadytune.records import config_hash


def config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {"data": DataSettings(source="sample"), "recipe": load_recipe("scl+hype"), **changes}
    return RunConfig(**values)


FULL = {
    "data": DataSettings(
        source="où/är.csv",
        text_column="Text",
        pair_column="",
        task="classification",
        fraction=0.3,
        imbalance=10,
        label_noise=0.2,
        label_noise_kind="pair",
        text_noise=1,
    ),
    "model": "some/encoder",
    "run": RunSettings(epochs=0.5, learning_rate=1e-5, examples_per_class=2, precision="bfloat16", head_seed=3),
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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("imbalance: 0.5", "data.imbalance must be greater than or equal to 1; got 0.5."),
        ("imbalance: .inf", "data.imbalance must be a finite number; got inf."),
        ("label_noise: -0.1", "data.label_noise must be greater than or equal to 0; got -0.1."),
        ("label_noise: 1", "data.label_noise must be less than 1; got 1."),
        (
            "label_noise: 0.1, label_noise_kind: matrix",
            "data.label_noise_kind must be 'uniform' or 'pair'; got 'matrix'.",
        ),
        ("label_noise_kind: pair", "data.label_noise_kind needs a data.label_noise above 0; got 'pair' with 0."),
        ("text_noise: 1.1", "data.text_noise must be less than or equal to 1; got 1.1."),
    ],
)
def test_a_corruption_out_of_range_is_refused_by_name(settings: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{source: sample, {settings}}}\nrecipe: {{name: plain}}\n")
    with pytest.raises(RecipeError, match=f"^{re.escape(f'{path}: {sentence}')}$"):
        load_run(path)


def test_one_run_setting_can_be_changed() -> None:
    assert config().with_run_setting("batch_size", 4) == config(run=RunSettings(batch_size=4))


def test_a_run_setting_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"^run\.batch_size must be greater than or equal to 1; got 0\.$"):
        config().with_run_setting("batch_size", 0)


def test_more_examples_per_class_than_rows_in_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.examples_per_class must be at most run\.batch_size, 4; got 5\."):
        config(run=RunSettings(batch_size=4, examples_per_class=5))


ROWS = {"train": "a" * 64, "dev": "b" * 64, "test": "c" * 64}


def protocol(rows: dict[str, str] = ROWS, **settings: Any) -> str:
    return protocol_hash(DataSettings(**{"source": "sample", **settings}), rows)


def test_a_protocol_has_one_hash_of_16_digits() -> None:
    assert re.fullmatch("[0-9a-f]{16}", protocol(k_shot=5))
    assert protocol(k_shot=5) == protocol(k_shot=5)


def test_the_hash_of_a_protocol_never_changes() -> None:
    """Frozen: a later version must know a protocol again; a setting that is new there is left at its default."""
    assert protocol() == "8ff88350ffed837e"
    assert protocol(k_shot=5, label_noise=0.2) == "1551e4de74104e02"


@pytest.mark.parametrize(
    "change",
    [
        {"train_rows": 20},
        {"k_shot": 20},
        {"fraction": 0.2},
        {"eval_rows": 20},
        {"imbalance": 10},
        {"label_noise": 0.2},
        {"label_noise": 0.3},
        {"label_noise": 0.2, "label_noise_kind": "pair"},
        {"text_noise": 0.2},
        {"rows": {**ROWS, "train": "d" * 64}},
        {"rows": {**ROWS, "test": "d" * 64}},
    ],
    ids=str,
)
def test_another_rule_or_other_rows_are_another_protocol(change: dict[str, Any]) -> None:
    others = [protocol(), protocol(k_shot=5), protocol(label_noise=0.1)]
    assert protocol(**change) not in others


def test_where_rows_lie_and_how_they_are_read_is_no_part_of_the_protocol() -> None:
    elsewhere = protocol(source="my/rows.csv", text_column="Text", label_column="y", task="classification", k_shot=5)
    assert elsewhere == protocol(k_shot=5)


def test_the_usual_kind_of_label_noise_is_the_same_protocol_said_or_not() -> None:
    assert protocol(label_noise=0.2, label_noise_kind="uniform") == protocol(label_noise=0.2)


def test_the_essence_of_a_run_is_what_moves_its_scores() -> None:
    run = RunConfig(data=DataSettings(source="sample"), recipe=load_recipe("scl"))
    remarked = run.recipe.model_copy(update={"title": "another", "origin": {"scl.weight": "a guess"}})
    assert run.model_copy(update={"recipe": remarked}).essence() == run.essence()
    assert run.model_copy(update={"recipe": run.recipe.with_setting("scl", "weight", 0.2)}).essence() != run.essence()
    assert run.model_copy(update={"seed": 1}).essence() != run.essence()


def test_the_head_follows_the_seed_of_the_run_unless_it_has_its_own() -> None:
    assert config(seed=3).head_seed == 3
    assert config(seed=3, run=RunSettings(head_seed=0)).head_seed == 0
    assert config(seed=3).with_run_setting("head_seed", 5).head_seed == 5


def test_a_run_without_its_own_head_seed_is_the_run_it_was_before_there_was_one(tmp_path: Path) -> None:
    """Frozen, as computed before: of every value, which names a single run, and of the essence, which names a cell."""
    run = RunConfig(data=DataSettings(source="sample"), recipe=Recipe(name="plain"), seed=3)
    assert config_hash(run.model_dump(mode="json")) == "722b649399eef4d7"
    assert config_hash(run.essence()) == "656469ce6da2608b"
    save_run(run, tmp_path / "run.yaml")
    assert "head_seed" not in (tmp_path / "run.yaml").read_text()


def test_another_head_is_another_run() -> None:
    run = config(run=RunSettings(head_seed=0))
    assert run.essence() != config().essence()
    assert run.model_dump(mode="json") != config().model_dump(mode="json")


def test_a_run_starts_from_the_model_that_its_recipe_names() -> None:
    own = Recipe(name="own", model="some/encoder")
    assert (config(recipe=own).model, config(recipe=own).learning_rate) == ("some/encoder", 2e-5)
    assert config(recipe=own.model_dump()).model == "some/encoder"
    assert config(recipe=own, model="some/encoder").model == "some/encoder"


def test_a_run_that_names_another_model_than_its_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="recipe 'own' starts from some/encoder, and the run from bundled; leave out"):
        config(recipe=Recipe(name="own", model="some/encoder"), model="bundled")


def test_where_a_recipe_names_no_model_the_run_is_what_it_was_before_recipes_could() -> None:
    assert "model" not in config().essence()["recipe"]
