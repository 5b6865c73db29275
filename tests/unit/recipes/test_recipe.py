"""Recipes: bundled ones build and say where each value comes from; stacks merge or are refused."""

from pathlib import Path

import pytest

from steadytune.methods import ASA, CAT, SCL, HyPe
from steadytune.methods.contract import MethodError
from steadytune.recipes import Dropout, Recipe, RecipeError, bundled_recipes, load_recipe

BUNDLED = [
    "asa-control-random",
    "asa",
    "asam",
    "averaging",
    "cat-control",
    "cat",
    "child-tuning-control-random",
    "child-tuning-f",
    "child_tuning",
    "consistency",
    "fgm-control-random",
    "fgm",
    "freelb-control-random",
    "freelb",
    "hype-control",
    "hype",
    "l2sp-penalty",
    "l2sp",
    "label_smoothing",
    "llrd",
    "lnsr-control-dropout",
    "lnsr-control-noise",
    "lnsr",
    "lora",
    "mixout",
    "neftune",
    "noisytune",
    "pgd-control-random",
    "pgd",
    "plain",
    "r3f",
    "r4f",
    "rdrop",
    "recadam-control",
    "recadam",
    "reinit",
    "sam-control-random",
    "sam",
    "scl",
    "smart-control-random",
    "smart",
    "strong",
    "swa",
    "tmix-control",
    "tmix",
    "topk",
    "vat-control-random",
    "vat",
    "paper/asa",
    "paper/cat",
    "paper/hype",
    "paper/scl",
    "pretrain/asa-control-random",
    "pretrain/asa",
    "pretrain/consistency",
    "pretrain/plain-equal-time",
    "pretrain/plain",
]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- bundled ----------------------------------------------------------------------------------------------------------


def test_every_bundled_recipe_is_listed_by_its_name() -> None:
    assert [recipe.name for recipe in bundled_recipes()] == BUNDLED  # in the order of their files


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_recipe_builds_the_methods_it_names(name: str) -> None:
    recipe = load_recipe(name)
    assert [method.key for method in recipe.build()] == list(recipe.methods)


@pytest.mark.parametrize("name", BUNDLED)
def test_every_value_of_a_bundled_recipe_has_an_origin_and_every_origin_a_value(name: str) -> None:
    recipe = load_recipe(name)
    values = {f"{key}.{setting}" for key, settings in recipe.methods.items() for setting in settings}
    values |= {f"dropout.{kind}" for kind, value in recipe.dropout if value is not None}
    values |= {"longer"} if recipe.longer != 1 else set()
    assert set(recipe.origin) == values and all(recipe.origin.values())


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_recipe_has_a_title(name: str) -> None:
    assert load_recipe(name).title


def test_the_plain_recipe_has_nothing_in_it() -> None:
    plain = load_recipe("plain")
    assert (plain.methods, plain.dropout) == ({}, Dropout())


def test_the_papers_scl_has_the_published_values() -> None:
    assert load_recipe("paper/scl").build() == (SCL(weight=0.9, temperature=0.3),)


def test_the_papers_hype_has_the_published_noise() -> None:
    assert load_recipe("paper/hype").build() == (HyPe(noise_std=1e-5, distribution="normal"),)


def test_the_papers_hype_switches_hidden_dropout_off() -> None:
    assert load_recipe("paper/hype").dropout == Dropout(hidden=0, attention=None)


def test_the_papers_cat_has_values_of_the_published_grids() -> None:
    (cat,) = load_recipe("paper/cat").build()
    assert isinstance(cat, CAT)
    assert cat.epsilon in (0.0001, 0.001, 0.005, 0.02)
    assert cat.temperature in (0.05, 0.06, 0.07, 0.08, 0.09, 0.1)
    assert cat.weight in (0.1, 0.2, 0.3, 0.4, 0.5)
    assert cat.projection_dim == 300


def test_the_papers_asa_has_the_values_of_the_released_code() -> None:
    assert load_recipe("paper/asa").build() == (
        ASA(
            weight=1.0,
            temperature=0.5,
            gain=1e4,
            parameterization="paper",
            protect="none",
            rank=None,
            share_dropout=False,
        ),
    )


# -- controls ---------------------------------------------------------------------------------------------------------

CONTROLS = {  # by control: the recipe that it isolates, what it changes there, and what it gives a measured value
    "cat-control": ("cat", {"epsilon": 0.0}, set()),
    "lnsr-control-dropout": ("lnsr", {"noise_std": 0.0, "dropout": "fresh"}, set()),
    "asa-control-random": ("asa", {"adversary": "random"}, {"mask_fraction"}),
    "consistency": ("asa", {"adversary": "none"}, set()),
    "recadam-control": ("recadam", {"gamma": 0.0}, set()),
    "sam-control-random": ("sam", {"direction": "random"}, set()),
    "tmix-control": ("tmix", {"states": False}, set()),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_the_recipe_that_it_isolates_but_for_what_it_switches_off(name: str) -> None:
    isolates, switched, measured = CONTROLS[name]
    (control,), (whole,) = load_recipe(name).build(), load_recipe(isolates).build()
    differing = {key for key, value in control.settings().items() if value != whole.settings()[key]}
    assert differing == {*switched, *measured}
    assert {key: control.settings()[key] for key in switched} == switched


def test_the_control_of_hype_has_its_dropout_and_no_method() -> None:
    assert load_recipe("hype-control").dropout == load_recipe("hype").dropout
    assert load_recipe("hype-control").methods == {}


def test_the_noise_control_of_lnsr_puts_its_noise_into_the_task_pass() -> None:
    (lnsr,), (hype,) = load_recipe("lnsr").build(), load_recipe("lnsr-control-noise").build()
    settings = lnsr.settings()
    assert hype == HyPe(noise_std=settings["noise_std"], relative=True, layers=(settings["injection_layer"],))
    assert settings["noise"] == "gaussian" and settings["relative"]


# -- stacks -----------------------------------------------------------------------------------------------------------


def test_a_stack_holds_the_parts_in_order() -> None:
    one, other, both = load_recipe("hype"), load_recipe("scl"), load_recipe("hype+scl")
    assert (both.name, list(both.methods)) == ("hype+scl", ["hype", "scl"])
    assert both.methods == {**one.methods, **other.methods}
    assert both.origin == {**one.origin, **other.origin}


def test_the_stack_of_all_five_holds_them_in_the_order_given() -> None:
    stack = load_recipe("scl+cat+hype+lnsr+asa")
    assert [method.key for method in stack.build()] == ["scl", "cat", "hype", "lnsr", "asa"]
    assert stack.dropout == Dropout(hidden=0)


@pytest.mark.parametrize(("one", "other"), [("asa", "consistency"), ("cat", "cat-control"), ("lnsr", "paper/cat+lnsr")])
def test_a_recipe_does_not_stack_with_its_control(one: str, other: str) -> None:
    with pytest.raises(RecipeError, match=f"both set the method '{one}'; name it once"):
        load_recipe(f"{one}+{other}")


def test_a_stack_keeps_the_dropout_that_one_part_sets() -> None:
    assert load_recipe("scl+hype").dropout == Dropout(hidden=0)


def test_parts_that_set_dropout_alike_stack(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "name: mine\ndropout: {hidden: 0.0, attention: 0.2}\n")
    assert load_recipe(f"hype+{mine}").dropout == Dropout(hidden=0, attention=0.2)


def test_contradicting_dropout_is_refused_with_both_recipes_named(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "name: mine\ndropout: {hidden: 0.1}\n")
    with pytest.raises(RecipeError, match=r"^recipes 'hype' and 'mine' set dropout\.hidden differently: 0 and 0\.1\.$"):
        load_recipe(f"hype+{mine}")


def written(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(f"name: {name}\n{text}\n")
    return str(folder / f"{name}.yaml")


def test_a_stack_trains_as_long_as_its_longest_part(tmp_path: Path) -> None:
    own = written(tmp_path, "own", "longer: 2")
    assert [load_recipe(name).longer for name in ("scl", own, f"scl+{own}")] == [1, 2, 2]


def test_parts_that_train_longer_by_other_factors_are_refused(tmp_path: Path) -> None:
    one, other = written(tmp_path, "one", "longer: 2"), written(tmp_path, "other", "longer: 3")
    with pytest.raises(RecipeError, match="recipes 'one' and 'other' set longer differently: 2 and 3"):
        load_recipe(f"{one}+{other}")


def test_training_shorter_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="longer must be greater than or equal to 1; got"):
        load_recipe(written(tmp_path, "own", "longer: 0.5"))


def test_a_stack_starts_from_the_model_that_one_part_names(tmp_path: Path) -> None:
    own = written(tmp_path, "own", "model: some/encoder")
    assert [load_recipe(name).model for name in ("scl", own, f"scl+{own}", f"{own}+scl")] == [
        None,
        *["some/encoder"] * 3,
    ]


def test_parts_that_start_from_different_models_are_refused(tmp_path: Path) -> None:
    one, other = written(tmp_path, "one", "model: a/b"), written(tmp_path, "other", "model: c/d")
    with pytest.raises(RecipeError, match="recipes 'one' and 'other' start from different models: a/b and c/d"):
        load_recipe(f"{one}+{other}")


def test_a_method_named_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^recipes 'scl' and 'paper/scl' both set the method 'scl'; name it once"):
        load_recipe("scl+paper/scl")


# -- files and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001"])
def test_a_number_may_be_written_as_people_write_it(text: str, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", f"name: mine\nmethods:\n  hype: {{noise_std: {text}}}\n")
    assert load_recipe(mine).methods == {"hype": {"noise_std": 0.00001}}


def test_a_misspelt_recipe_is_suggested() -> None:
    with pytest.raises(RecipeError, match=r"^unknown recipe 'hyp'; did you mean 'hype'\?$"):
        load_recipe("hyp")


def test_a_recipe_like_no_other_is_answered_with_the_list() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("12345")
    assert str(caught.value) == f"unknown recipe '12345'; bundled are {', '.join(sorted(BUNDLED))}."


def test_a_recipe_file_that_is_missing_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^recipe file nowhere\.yaml does not exist\.$"):
        load_recipe("nowhere.yaml")


def test_an_unknown_method_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^unknown method 'hyp'; did you mean 'hype'\?$"):
        load_recipe(write(tmp_path / "mine.yaml", "name: mine\nmethods:\n  hyp: {}\n"))


# -- one setting changed ----------------------------------------------------------------------------------------------


def test_a_changed_setting_says_that_the_user_gave_it() -> None:
    changed = load_recipe("scl").with_setting("scl", "temperature", 0.1)
    assert changed.methods["scl"]["temperature"] == 0.1
    assert changed.origin["scl.temperature"] == "given by the user"


def test_a_changed_setting_leaves_the_others_and_the_recipe_it_came_from() -> None:
    before = load_recipe("scl")
    changed = before.with_setting("scl", "temperature", 0.1)
    assert before == load_recipe("scl")
    assert changed.methods["scl"]["weight"] == before.methods["scl"]["weight"]
    assert changed.origin["scl.weight"] == before.origin["scl.weight"]


def test_a_changed_dropout_says_that_the_user_gave_it() -> None:
    changed = load_recipe("plain").with_setting("dropout", "attention", 0.2)
    assert (changed.dropout, changed.origin) == (Dropout(attention=0.2), {"dropout.attention": "given by the user"})


def test_a_dropout_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"^dropout\.hidden must be less than 1; got 1\."):
        load_recipe("plain").with_setting("dropout", "hidden", 1)


def test_a_setting_of_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^recipe 'scl' has no part 'hype' to set; its parts are scl, dropout, run"):
        load_recipe("scl").with_setting("hype", "noise_std", 1)


def test_a_setting_that_a_method_lacks_is_refused_when_it_is_built() -> None:
    with pytest.raises(MethodError, match="wieght"):
        Recipe(name="mine", methods={"scl": {"wieght": 0.5}}).build()
