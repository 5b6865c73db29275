"""A pre-training run in a file: one budget, the recipes made for it, and what two runs have in common."""

from pathlib import Path
from typing import Any

import pytest

from steadytune.recipes import PretrainConfig, RecipeError, load_pretrain, load_pretrain_recipe, save_pretrain
from steadytune.recipes.recipe import validated


def config_of(recipe: str = "plain", model: str = "bundled", **run: Any) -> PretrainConfig:
    values = {"texts": {"train": ["a.txt"]}, "model": model, "recipe": load_pretrain_recipe(recipe), "run": run}
    return validated(PretrainConfig, values, "")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("plain", "pretrain/plain"),
        ("asa", "pretrain/asa"),
        ("paper/asa", "paper/asa"),
        ("rdrop", "rdrop"),
        ("asa+hype", "pretrain/asa+hype"),
    ],
)
def test_a_name_means_the_recipe_made_for_pretraining_if_there_is_one(given: str, name: str) -> None:
    assert load_pretrain_recipe(given).name == name


def test_the_baselines_differ_from_asa_in_who_masks_alone() -> None:
    asa, random, none = (load_pretrain_recipe(name).build()[0] for name in ("asa", "asa-control-random", "consistency"))
    assert [method.adversary for method in (asa, random, none)] == ["learned", "random", "none"]  # type: ignore[attr-defined]
    assert asa.target_mask_fraction == random.mask_fraction  # type: ignore[attr-defined]
    assert len({method.coefficient for method in (asa, random, none)}) == 1


@pytest.mark.parametrize(("run", "got"), [({}, "neither"), ({"steps": 3, "minutes": 1.0}, "both")])
def test_a_run_has_one_budget(run: dict[str, Any], got: str) -> None:
    with pytest.raises(RecipeError, match=f"give either steps or minutes; got {got}"):
        config_of(**run)


def test_longer_multiplies_steps_and_is_refused_with_minutes() -> None:
    assert config_of("plain-equal-time", steps=100).total_steps == 190
    assert config_of(minutes=1).total_steps is None
    with pytest.raises(RecipeError, match="with minutes every recipe has the same time, so take 'plain'"):
        config_of("plain-equal-time", minutes=1)


def test_a_recipe_that_names_another_model_is_refused() -> None:
    own = {"name": "own", "model": "some/encoder"}
    with pytest.raises(RecipeError, match="recipe 'own' starts from some/encoder, and the run from bundled"):
        validated(PretrainConfig, {"texts": {"train": ["a.txt"]}, "recipe": own, "run": {"steps": 3}}, "")


def test_a_new_model_learns_faster_than_a_trained_one_unless_somebody_says_so() -> None:
    assert (config_of(steps=1).learning_rate, config_of(steps=1, model="new:2x32").learning_rate) == (1e-4, 1e-3)
    assert config_of(steps=1, learning_rate=0.5).learning_rate == 0.5


def test_a_saved_run_is_the_same_run(tmp_path: Path) -> None:
    config = config_of("asa", steps=7, fixed_count=True)
    save_pretrain(config, tmp_path / "run.yaml")
    assert load_pretrain(tmp_path / "run.yaml") == config
    assert (tmp_path / "run.yaml").read_text().startswith("# Repeat this run: steadytune pretrain --config run.yaml")


def test_titles_and_defaults_do_not_make_another_run() -> None:
    one = config_of(steps=7)
    other = one.model_copy(update={"recipe": one.recipe.model_copy(update={"title": "mine"})})
    assert one.essence() == other.essence() == config_of(steps=7, batch_size=32).essence()
    assert one.essence() != config_of(steps=8).essence()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_pretrain(tmp_path / "run.yaml")
