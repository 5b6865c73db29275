"""A search: what it may search, what it suggests, and what it chooses. Scores are made up; nothing is trained."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steadytune.recipes.recipe import load_recipe, validated
from steadytune.records import Cost, RunRecord, StudyStore
from steadytune.studies.execute import failed_record
from steadytune.studies.executors import Agenda
from steadytune.studies.plan import Cell, Plan, PlanError
from steadytune.studies.search import Chain, Choice, chains, changed, check_search, concerning, explore

RATE: dict[str, Any] = {"run.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}
BEST_RATE = 1e-3


def plan(space: dict[str, Any] = RATE, **changes: Any) -> Plan:
    search = {"trials": 6, "space": space, **changes.pop("search", {})}
    values = {"tasks": {"sample": {"source": "sample"}}, "recipes": ["plain", "scl"], "seeds": 2, "search": search}
    return validated(Plan, {**values, **changes}, "plan")


def chain(space: dict[str, Any] = RATE, recipe: str = "scl", **changes: Any) -> Chain:
    wanted = plan(space, **changes)
    return next(found for found in chains(wanted, wanted.cells()) if found.place[2] == recipe)


def scored(cell: Cell, dev: float | None, test: float | None = None, units: float = 3.0) -> RunRecord:
    """A record that says no more than its scores and its cost."""
    scores = {name: {"accuracy": value} for name, value in {"dev": dev, "test": test}.items() if value is not None}
    cost = Cost(
        optimizer_steps=10, forward_passes=1, pass_units=10 * units, tokens=1, train_seconds=1, peak_memory_bytes=1
    )
    values = {"status": "done", "failure": None, "metric": "accuracy", "scores": scores, "cost": cost}
    return failed_record(cell, "").model_copy(update=values)


def rate(cell: Cell) -> float:
    assert cell.config.run.learning_rate is not None
    return cell.config.run.learning_rate


def near_best(cell: Cell) -> float:
    return 1.0 - abs(rate(cell) - BEST_RATE)


def explored(
    chain: Chain, score: Callable[[Cell], float | None] = near_best, most: int = 1000
) -> tuple[Choice | None, list[Cell]]:
    """The choice, and the runs that were asked for; after `most` of them there are no more records."""
    asked: list[Cell] = []

    def run(cell: Cell) -> RunRecord | None:
        if len(asked) == most:
            return None
        asked.append(cell)
        value = score(cell)
        return failed_record(cell, "no reason") if value is None else scored(cell, value)

    return explore(chain, run), asked


def test_run_settings_concern_all_recipes_and_method_settings_those_that_hold_the_method() -> None:
    recipes = [load_recipe(name) for name in ("plain", "scl", "scl+hype")]
    space = plan({**RATE, "scl.weight": [0.1, 0.2], "hype.noise_std": [0.01, 0.1]}, recipes=["scl+hype"]).search
    assert space is not None
    assert [list(concerning(space.space, recipe, recipes)) for recipe in recipes] == [
        ["run.learning_rate"],
        ["run.learning_rate", "scl.weight"],
        ["run.learning_rate", "scl.weight", "hype.noise_std"],
    ]


def test_a_control_keeps_the_setting_that_makes_it_one() -> None:
    space = {"cat.weight": [0.1, 0.2], "cat.epsilon": [0.1, 0.2]}  # cat-control is cat with an epsilon of 0
    own = {
        found.place[2]: list(found.space) for found in chains_of(plan(space, recipes=["plain", "cat"], controls=True))
    }
    assert own == {"cat": ["cat.weight", "cat.epsilon"], "cat-control": ["cat.weight"]}


def test_a_control_of_another_method_keeps_that_method_as_it_is() -> None:
    space = {"lnsr.weight": [1.0, 2.0], "hype.noise_std": [0.1, 0.2]}  # lnsr-control-noise is built from hype
    found = chains_of(plan(space, recipes=["plain", "lnsr", "hype"], controls=True))
    assert {one.place[2] for one in found} == {"lnsr", "lnsr-control-dropout", "hype"}


def chains_of(wanted: Plan) -> list[Chain]:
    return chains(wanted, wanted.cells())


def test_every_recipe_gets_the_same_number_of_trials() -> None:
    found = chains_of(plan({**RATE, "scl.weight": [0.1, 0.2]}, recipes=["plain", "scl", "hype"], controls=True))
    assert {one.place[2]: len(explored(one)[1]) for one in found} == {
        "plain": 6,
        "scl": 6,
        "hype": 6,
        "hype-control": 6,
    }


def test_a_trial_trains_on_the_rows_of_the_final_runs_with_its_own_seeds() -> None:
    one = chain(search={"seeds": [7, 9]})
    cells = one.trial_cells(3, {"run.learning_rate": 0.5, "scl.weight": 0.25})
    assert [cell.config.seed for cell in cells] == [7, 9]
    assert {cell.config.data for cell in cells} == {one.finals[0].config.data}
    assert {(rate(cell), cell.config.recipe.methods["scl"]["weight"]) for cell in cells} == {(0.5, 0.25)}
    assert cells[0].place() == {
        "task": "sample",
        "protocol": "as published",
        "recipe": "scl",
        "role": "trial",
        "budget": "steps",
        "seed": 7,
        "trial": 3,
    }


def test_each_run_of_a_trial_has_its_own_id() -> None:
    one = chain(search={"seeds": [7, 9]})
    cells = [
        *one.finals,
        *one.trial_cells(0, {"run.learning_rate": 0.5}),
        *one.trial_cells(1, {"run.learning_rate": 1}),
    ]
    assert len({cell.id for cell in cells}) == len(cells) == 6


def test_a_changed_run_has_another_id_also_if_the_old_one_is_known() -> None:
    cell = plan().cells()[0]
    before = cell.id
    assert changed(cell, config=cell.config.model_copy(update={"seed": 99})).id != before


def test_the_trial_with_the_best_mean_dev_score_is_chosen() -> None:
    choice, asked = explored(
        chain(search={"seeds": [7, 9]}), lambda cell: near_best(cell) + 0.5 * (cell.config.seed == 7)
    )
    assert choice is not None
    assert len(asked) == 12
    rates = [rate(cell) for cell in asked[::2]]
    best = min(range(6), key=lambda trial: abs(rates[trial] - BEST_RATE))
    assert (choice.trial, choice.settings) == (best, {"run.learning_rate": rates[best]})
    assert choice.score == pytest.approx(1.25 - abs(rates[best] - BEST_RATE))


def test_scores_on_test_choose_nothing() -> None:
    plainly = explore(chain(), lambda cell: scored(cell, near_best(cell)))
    assert explore(chain(), lambda cell: scored(cell, near_best(cell), test=-near_best(cell))) == plainly


def test_suggestions_follow_the_scores() -> None:
    upwards = [rate(cell) for cell in explored(chain(search={"trials": 30}), rate)[1]]
    downwards = [rate(cell) for cell in explored(chain(search={"trials": 30}), lambda cell: -rate(cell))[1]]
    assert upwards[:10] == downwards[:10]  # drawn before scores guide
    assert sorted(upwards[10:])[10] > sorted(downwards[10:])[10]


@pytest.mark.parametrize("most", [0, 1, 5])
def test_a_search_that_stopped_goes_on_with_the_same_suggestions(most: int) -> None:
    choice, unbroken = explored(chain())
    stopped, begun = explored(chain(), most=most)
    assert (stopped, begun) == (None, unbroken[:most])
    assert explored(chain()) == (choice, unbroken)


def test_a_failed_trial_is_counted_and_not_chosen() -> None:
    _, asked = explored(chain())
    best = min(asked, key=lambda cell: abs(rate(cell) - BEST_RATE))
    choice, again = explored(chain(), lambda cell: None if rate(cell) == rate(best) else near_best(cell))
    assert choice is not None and choice.settings is not None
    assert (len(again), choice.failed) == (6, 1)
    assert choice.settings["run.learning_rate"] != rate(best)


def test_one_failed_seed_fails_its_trial() -> None:
    choice, _ = explored(chain(search={"seeds": [7, 9]}), lambda cell: None if cell.config.seed == 9 else 1.0)
    assert choice == Choice(failed=6)


def test_integers_are_searched_as_integers_up_to_both_ends() -> None:
    space = {"lnsr.injection_layer": {"low": 1, "high": 3}}
    _, asked = explored(chain(space, "lnsr", recipes=["lnsr"], search={"trials": 20}), lambda cell: 1.0)
    tried = [cell.config.recipe.methods["lnsr"]["injection_layer"] for cell in asked]
    assert {type(value) for value in tried} == {int}
    assert set(tried) == {1, 2, 3}


def test_a_value_may_be_a_list() -> None:
    one = chain({"hype.layers": [[0], [0, 1]]}, "hype", recipes=["hype"])
    tried = {tuple(cell.config.recipe.methods["hype"]["layers"]) for cell in explored(one, lambda cell: 1.0)[1]}
    assert tried == {(0,), (0, 1)}


def agenda(wanted: Plan) -> Agenda:
    """As if every recipe took 40 steps at equal compute, and a run could spend 120 pass units."""
    places = [("sample", "as published", recipe.name) for recipe, _ in wanted.arms()]
    return Agenda(wanted, dict.fromkeys(places, 40), {("sample", "as published"): 120.0})


def test_final_runs_wait_for_their_choice_and_hold_it() -> None:
    wanted = agenda(plan({"scl.weight": [0.1, 0.2]}))
    assert {cell.recipe for cell in wanted.final_cells({})} == {"plain"}  # no entry concerns it
    place = ("sample", "as published", "scl")
    cells = wanted.final_cells({place: Choice({"scl.weight": 0.2}, 1, 0.5, 3.0)})
    assert [(cell.role, cell.config.seed) for cell in cells if cell.recipe == "scl"] == [("recipe", 0), ("recipe", 1)]
    assert {cell.config.recipe.methods["scl"]["weight"] for cell in cells if cell.recipe == "scl"} == {0.2}
    assert {cell.config.recipe.origin["scl.weight"] for cell in cells if cell.recipe == "scl"} == {
        "chosen by the search of the study"
    }


def test_at_equal_compute_a_chosen_setting_that_costs_more_gets_fewer_steps() -> None:
    wanted = agenda(plan({"scl.weight": [0.1, 0.2]}, budget="both", seeds=1))
    place = ("sample", "as published", "scl")
    cells = wanted.final_cells({place: Choice({"scl.weight": 0.2}, 1, 0.5, units_per_step=4.0)})
    steps = {(cell.recipe, cell.budget): cell.config.run.steps for cell in cells}
    assert steps == {("plain", "steps"): None, ("plain", "compute"): 40, ("scl", "steps"): None, ("scl", "compute"): 30}


def test_units_per_step_are_those_that_the_best_trial_spent() -> None:
    choice = explore(chain(), lambda cell: scored(cell, near_best(cell), units=4.5))
    assert choice is not None
    assert choice.units_per_step == 4.5


def test_choices_are_read_from_records_alone(tmp_path: Path) -> None:
    wanted, store = agenda(plan(seeds=1)), StudyStore(tmp_path)
    assert wanted.choices(store) == {}
    for one in wanted.chains:
        for cell in explored(one)[1]:
            store.finish(cell.id, scored(cell, near_best(cell)))
    assert {place[2]: choice.score for place, choice in wanted.choices(store).items()} == {
        one.place[2]: max(near_best(cell) for cell in explored(one)[1]) for one in wanted.chains
    }


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (
            {"slc.weight": [0.1]},
            "search.space.slc.weight concerns no recipe of the plan; did you mean 'scl.weight'?",
        ),
        (
            {"cat.weight": [0.1]},
            "search.space.cat.weight concerns no recipe of the plan; its methods are scl, and run.SETTING concerns "
            "all.",
        ),
        (
            {"scl.wieght": [0.1]},
            "search.space.scl.wieght, recipe 'scl': scl has no setting 'wieght'; settings are weight, temperature, "
            "reduction, pooled_source, gather_across_devices, gather_across_accumulation.",
        ),
        (
            {"scl.temperature": {"low": -1, "high": 1}},
            "search.space.scl.temperature, recipe 'scl': scl.temperature must be a number > 0; got -1.0.",
        ),
        (
            {"scl.reduction": {"low": 0, "high": 1}},
            "search.space.scl.reduction, recipe 'scl': scl.reduction is not a number; list its values.",
        ),
        (
            {"scl.weight": [0.1, 1.0]},
            "search.space.scl.weight, recipe 'scl': a weight of 1 leaves the classification head untrained; lower it, "
            "or use RegularizedModel.",
        ),
        (
            {"run.batch_size": [8, 16]},
            "search.space.run.batch_size cannot be searched; of the run block run.learning_rate, run.warmup_fraction, "
            "run.weight_decay, run.max_grad_norm can be.",
        ),
        (
            {"run.learning_rat": [1e-5]},
            "search.space.run.learning_rat cannot be searched; did you mean 'run.learning_rate'?",
        ),
        (
            {"run.learning_rate": [0.1, -0.1]},
            "search.space.run.learning_rate, recipe 'plain': run.learning_rate must be greater than 0; got -0.1.",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence(space: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_search(plan(space))
    assert str(caught.value) == sentence


def test_a_fraction_of_an_integer_setting_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"injection_layer, recipe 'lnsr': low and high must be integers; got 0.5 and 2\."
    ):
        check_search(plan({"lnsr.injection_layer": {"low": 0.5, "high": 2}}, recipes=["lnsr"]))


def test_without_a_test_split_settings_would_be_chosen_on_rows_of_another_seeds_test_set(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("text,label\n" + "".join(f"row {row},{row % 2}\n" for row in range(40)))
    with pytest.raises(PlanError, match="a search needs a test split, and task 'rows' has none"):
        check_search(plan(tasks={"rows": {"source": str(table)}}))


def test_a_search_that_can_be_done_passes() -> None:
    check_search(plan({**RATE, "scl.weight": {"low": 0.05, "high": 0.5}, "scl.pooled_source": ["cls", "label_input"]}))


def test_without_optuna_a_search_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PlanError, match=r"a search needs Optuna; install it with pip install 'steadytune\[hpo\]'\."):
        check_search(plan())


def test_without_optuna_a_plan_that_does_not_search_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    check_search(plan().model_copy(update={"search": None}))
