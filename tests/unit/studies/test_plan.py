"""A plan: which cells it stands for, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from steadytune.recipes.recipe import RecipeError, load_recipe, validated
from steadytune.studies.plan import Plan, controls_of, dump_plan, load_plan

TINY: dict[str, Any] = {"tasks": {"sample": {"source": "sample"}}, "recipes": ["plain", "scl"], "seeds": 2}


def plan(**changes: Any) -> Plan:
    return validated(Plan, {**TINY, **changes}, "plan")


def test_every_task_protocol_recipe_and_seed_is_one_cell() -> None:
    protocols = {"20 rows": {"train_rows": 20}, "40 rows": {"train_rows": 40}}
    cells = plan(protocols=protocols).cells()
    assert {(cell.task, cell.protocol, cell.recipe, cell.config.seed) for cell in cells} == {
        ("sample", protocol, recipe, seed) for protocol in protocols for recipe in ("plain", "scl") for seed in (0, 1)
    }
    assert len({cell.id for cell in cells}) == len(cells) == 8


def test_seeds_are_outermost_so_that_an_unfinished_study_is_a_smaller_one() -> None:
    assert [cell.config.seed for cell in plan(seeds=[7, 3]).cells()] == [7, 7, 3, 3]


def test_the_first_recipe_is_the_baseline() -> None:
    assert [(recipe.name, role) for recipe, role in plan().arms()] == [("plain", "baseline"), ("scl", "recipe")]


def test_controls_come_last_and_once() -> None:
    arms = plan(recipes=["plain", "asa", "lnsr", "asa+lnsr"], controls=True).arms()
    assert [recipe.name for recipe, role in arms if role == "control"] == [
        "asa-control-random",
        "consistency",
        "lnsr-control-dropout",
        "lnsr-control-noise",
    ]


def test_a_control_that_is_a_recipe_of_the_plan_is_not_added() -> None:
    assert controls_of(load_recipe("scl")) == ["plain"]
    assert [role for _, role in plan(controls=True).arms()] == ["baseline", "recipe"]


def test_a_second_baseline_comes_after_the_recipes_and_before_their_controls() -> None:
    arms = plan(recipes=["plain", "hype"], controls=True, second_baseline="strong").arms()
    assert [(recipe.name, role) for recipe, role in arms[2:]] == [("strong", "control"), ("hype-control", "control")]


def test_a_second_baseline_that_is_a_recipe_of_the_plan_is_not_added() -> None:
    arms = plan(recipes=["plain", "strong"], second_baseline="strong").arms()
    assert [(recipe.name, role) for recipe, role in arms] == [("plain", "baseline"), ("strong", "recipe")]


def test_a_second_baseline_from_a_file_goes_by_its_name(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: mine\nlonger: 3\n")
    arms = plan(recipes=["plain", "hype"], second_baseline=str(own)).arms()
    assert [recipe.name for recipe, _ in arms] == ["plain", "hype", "mine"]
    arms = plan(recipes=["plain", str(own)], second_baseline=str(own)).arms()
    assert [(recipe.name, role) for recipe, role in arms] == [("plain", "baseline"), ("mine", "recipe")]


def test_a_recipe_that_names_a_model_starts_from_it_and_the_others_from_that_of_the_plan(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nmodel: some/encoder\n")
    models = {
        cell.recipe: cell.config.model for cell in plan(model="other/encoder", recipes=["plain", str(own)]).cells()
    }
    assert models == {"plain": "other/encoder", "own": "some/encoder"}


def test_one_run_has_one_id_in_every_plan() -> None:
    alone = {cell.id for cell in plan(name="one", recipes=["plain"]).cells()}
    assert alone < {cell.id for cell in plan(name="other", recipes=["scl", "plain"]).cells()}


def test_equal_compute_takes_the_given_steps() -> None:
    steps = {("sample", "as published", "plain"): 40, ("sample", "as published", "scl"): 30}
    cells = plan(budget="equal-compute", seeds=1).cells(steps)
    assert {cell.recipe: cell.config.run.steps for cell in cells} == {"plain": 40, "scl": 30}
    assert {cell.budget for cell in cells} == {"compute"}


def test_both_budgets_are_both_cells() -> None:
    steps = {("sample", "as published", "plain"): 40, ("sample", "as published", "scl"): 30}
    cells = plan(budget="both", seeds=1).cells(steps)
    assert sorted((cell.budget, cell.recipe) for cell in cells) == [
        ("compute", "plain"),
        ("compute", "scl"),
        ("steps", "plain"),
        ("steps", "scl"),
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipes": ["plain", "plain"]}, "recipes must differ; got plain, plain."),
        ({"seeds": 0}, "seeds must be a number >= 1 or a list of different numbers >= 0; got 0."),
        ({"seeds": [1, 1]}, "seeds must be a number >= 1 or a list of different numbers >= 0; got [1, 1]."),
        ({"tasks": {}}, "a plan needs at least one task and one protocol."),
        (
            {"run": {"steps": 9}, "budget": "both"},
            "run.steps fixes the steps of every recipe; use budget: equal-steps with it.",
        ),
        ({"search": {"trials": 3}}, "search.space is missing; add it."),
        ({"search": {"trails": 3, "space": {"a": [1]}}}, "unknown entry search.trails; did you mean 'trials'?"),
        ({"search": {"trials": 0, "space": {"a": [1]}}}, "search.trials must be greater than or equal to 1; got 0."),
        ({"search": {"space": {}}}, "search.space must say what at least one setting may be; got {}."),
        ({"search": {"space": {"a": 3}}}, "search.space.a must be a list of values, or have a low and a high; got 3."),
        ({"search": {"space": {"a": [1, 1]}}}, "search.space.a must list at least one value, each once; got [1, 1]."),
        ({"search": {"space": {"a": {"low": 1}}}}, "search.space.a.high is missing; add it."),
        ({"search": {"space": {"a": {"low": 2, "high": 1}}}}, "search.space.a must have low < high; got 2 and 1."),
        (
            {"search": {"space": {"a": {"low": 0, "high": 1, "log": True}}}},
            "search.space.a must have 0 < low < high with log: true; got 0 and 1.",
        ),
        (
            {"search": {"space": {"a": [1]}, "seeds": [1, 1]}},
            "search.seeds must be a list of different numbers from 0 to 2147483647; got [1, 1].",
        ),
        (
            {"search": {"space": {"a": [1]}, "seeds": [1000, 1]}},
            "search.seeds must not be final seeds; got 1 in both.",
        ),
        (
            {"search": {"space": {"a": [1]}}, "budget": "both", "run": {"accumulation_steps": 2}},
            "a search with accumulation_steps above 1 cannot keep compute equal; use equal-steps.",
        ),
        ({"tasks": {"a/b": {"source": "sample"}}}, "so it holds no '/' and no leading dot; got 'a/b'."),
        (
            {"tasks": {"a": {"source": "sample", "k_shot": 2}}, "protocols": {"few": {"k_shot": 1}}},
            "task 'a' and protocol 'few' both set k_shot.",
        ),
    ],
)
def test_a_contradiction_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(**changes)
    assert str(caught.value).endswith(sentence)


def test_an_unknown_recipe_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match="did you mean 'scl'"):
        plan(recipes=["plain", "slc"]).cells()


def test_a_plan_with_a_search_survives_its_file(tmp_path: Path) -> None:
    space = {"run.learning_rate": {"low": 1e-5, "high": 3e-4, "log": True}, "scl.weight": [0.1, 0.5]}
    before = plan(search={"trials": 3, "space": space})
    (tmp_path / "plan.yaml").write_text(dump_plan(before), encoding="utf-8")
    assert load_plan(tmp_path / "plan.yaml") == before


def asking(*sets: Any) -> dict[str, dict[str, Any]]:
    return {"sample": {"source": "sample", "robustness": list(sets)}}


def test_robustness_sets_change_no_run() -> None:
    asked = plan(tasks=asking("advglue:sst2"))
    assert [cell.id for cell in asked.cells()] == [cell.id for cell in plan().cells()]
    assert asked.data("sample", "as published") == plan().data("sample", "as published")


def test_a_plan_without_robustness_sets_is_written_as_it_was_before_there_were_any() -> None:
    assert "robustness" not in dump_plan(plan())
    assert plan().robustness("sample") == []


def test_a_robustness_set_is_named_in_one_word_or_by_its_settings(tmp_path: Path) -> None:
    before = plan(tasks=asking("hans:test", {"source": "own", "labels": {"mixed": None}, "sets": "pair"}))
    (tmp_path / "plan.yaml").write_text(dump_plan(before), encoding="utf-8")
    hans, own = load_plan(tmp_path / "plan.yaml").robustness("sample")
    assert (hans.source, hans.split) == ("hans", "test")
    assert (own.source, own.labels, own.sets) == ("own", {"mixed": None}, "pair")


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (
            asking(3),
            "robustness of task 'sample' must be a list of SOURCE:SPLIT, or of mappings with a source; got [3].",
        ),
        (asking({"split": "test"}), "robustness[0] of task 'sample': source is missing; add it."),
        (
            asking("a", {"source": "b", "slice": []}),
            "robustness[1] of task 'sample': unknown entry slice; did you mean 'slices'?",
        ),
        (
            {"one": {"source": "sample"}, "two": {"source": "sample", "robustness": ["a"]}},
            "tasks 'one' and 'two' share their runs; give both the same robustness sets.",
        ),
    ],
)
def test_a_robustness_set_that_cannot_be_read_is_refused(tasks: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(tasks=tasks)
    assert str(caught.value).endswith(sentence)
