"""Choose settings before the final runs: for every recipe the same number of trials, judged on validation alone."""

import difflib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from steadytune.data import available_splits, resolve_splits
from steadytune.methods import MethodError, method_class
from steadytune.recipes import Recipe, RunConfig, RunSettings
from steadytune.recipes.recipe import RecipeError
from steadytune.records import RunRecord, config_hash
from steadytune.studies.outlook import Place
from steadytune.studies.plan import Cell, Plan, PlanError, Range, Search, controls_of
from steadytune.training.loading import RunError
from steadytune.training.prepare import methods_of

# What all recipes of a comparison share must stay shared: batches, number of steps, length of the inputs.
SEARCHABLE_RUN_SETTINGS = ("learning_rate", "warmup_fraction", "weight_decay", "max_grad_norm")
_ORIGIN = "chosen by the search of the study"
Entry = Range | list[Any]
Settings = Mapping[str, Any]
"""Values by "run.SETTING" or "METHOD.SETTING"."""


@dataclass(frozen=True)
class Choice:
    """What the trials of one recipe at one place came to.

    Attributes:
        settings: of the best trial; None if every trial failed.
        trial: its number.
        score: its mean over the search seeds, on the dev split, in the metric of the task.
        units_per_step: pass units of one optimizer step of it, counted.
        failed: number of trials that failed.
    """

    settings: Settings | None = None
    trial: int | None = None
    score: float | None = None
    units_per_step: float | None = None
    failed: int = 0


@dataclass(frozen=True)
class Chain:
    """The trials of one recipe at one place, in order: each suggestion rests on the scores before it.

    Attributes:
        search: how many trials, with which seeds.
        space: the entries that concern the recipe.
        finals: the runs that wait for its choice, with the recipe's own settings.
    """

    search: Search
    space: Mapping[str, Entry]
    finals: tuple[Cell, ...]

    @property
    def place(self) -> Place:
        """Whose trials these are."""
        return place_of(self.finals[0])

    @property
    def id(self) -> str:
        """Names its claim in the store; a plan has one chain per place."""
        return f"search-{config_hash({'place': self.place})}"

    def trial_cells(self, number: int, settings: Settings) -> list[Cell]:
        """The runs of one trial, one per search seed.

        Args:
            number: of the trial.
            settings: suggested.
        """
        base = self.finals[0]
        seeded = (base.config.model_copy(update={"seed": seed}) for seed in self.search.seeds)
        return [changed(base, role="trial", trial=number, config=with_settings(config, settings)) for config in seeded]


def changed(cell: Cell, **changes: Any) -> Cell:
    """A run like another. `model_copy` will not do: it would keep the id that the other one has worked out.

    Args:
        cell: the other.
        changes: what differs, by field.
    """
    return Cell(**{**{name: getattr(cell, name) for name in Cell.model_fields}, **changes})


def place_of(cell: Cell) -> Place:
    """Task, protocol and recipe of a run.

    Args:
        cell: the run.
    """
    return cell.task, cell.protocol, cell.recipe


def with_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """A run with some settings changed.

    Args:
        config: the run.
        settings: new values.
    Raises:
        RecipeError: a setting that the run does not have, or out of range.
    """
    for name, value in settings.items():
        key, _, setting = name.partition(".")
        if key == "run":
            config = config.with_run_setting(setting, value)
        else:
            recipe = config.recipe.with_setting(key, setting, value)
            recipe = recipe.model_copy(update={"origin": {**recipe.origin, name: _ORIGIN}})
            config = config.model_copy(update={"recipe": recipe})
    return config


def chains(plan: Plan, cells: Sequence[Cell]) -> list[Chain]:
    """One chain for every recipe, task and protocol that the search concerns; at equal steps if the plan has both.

    Args:
        plan: the study.
        cells: its final runs, with the recipes' own settings.
    """
    if plan.search is None:
        return []
    recipes = [recipe for recipe, _ in plan.arms()]
    finals: dict[Place, list[Cell]] = {}
    for cell in cells:
        finals.setdefault(place_of(cell), []).append(cell)
    spaces = {recipe.name: concerning(plan.search.space, recipe, recipes) for recipe in recipes}
    return [Chain(plan.search, spaces[place[2]], tuple(own)) for place, own in finals.items() if spaces[place[2]]]


def concerning(space: Mapping[str, Entry], recipe: Recipe, recipes: Sequence[Recipe]) -> dict[str, Entry]:
    """The entries of a space that concern a recipe: those of `run`, and those of its methods.

    In a control, the settings that make it one stay as they are: those in which it differs from what it isolates.

    Args:
        space: of the search.
        recipe: which.
        recipes: all of the plan.
    """
    isolated = [other for other in recipes if recipe.name in controls_of(other)]
    found = {}
    for name, entry in space.items():
        key, _, setting = name.partition(".")
        own = _value(recipe, key, setting)
        if key == "run" or (key in recipe.methods and all(_value(other, key, setting) == own for other in isolated)):
            found[name] = entry
    return found


def explore(chain: Chain, run: Callable[[Cell], RunRecord | None]) -> Choice | None:
    """Ask for suggestions, have them tried and choose; the same suggestions again whenever the scores are the same.

    Args:
        chain: whose trials.
        run: gives the record of a trial's run, made or found; None if there is none, which ends the exploration.
    Returns:
        The choice, or None if it is not known yet.
    Raises:
        PlanError: Optuna is not installed.
    """
    optuna = _optuna()
    startup = min(10, (chain.search.trials + 1) // 2)  # drawn at random, before scores guide the rest
    sampler = optuna.samplers.TPESampler(seed=chain.search.seeds[0], n_startup_trials=startup)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    best, failed = Choice(), 0
    for number in range(chain.search.trials):
        trial = study.ask()
        settings = {name: _suggested(trial, name, entry, chain) for name, entry in chain.space.items()}
        records: list[RunRecord] = []
        for cell in chain.trial_cells(number, settings):
            record = run(cell)
            if record is None:
                return None
            records.append(record)
        score = _mean_score(records)
        if score is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            failed += 1
            continue
        study.tell(trial, score)
        if best.score is None or score > best.score:
            best = Choice(settings, number, score, _units_per_step(records))
    return Choice(best.settings, best.trial, best.score, best.units_per_step, failed)


def check_search(plan: Plan) -> None:
    """Refuse a search that cannot be done, in one sentence.

    Args:
        plan: the study; one without a search passes.
    Raises:
        PlanError: Optuna is missing, an entry names nothing or a value that is not allowed, a recipe would get no
            trials, or a task has no rows that stay closed while settings are chosen.
    """
    if plan.search is None:
        return
    _optuna()
    recipes = [recipe for recipe, _ in plan.arms()]
    for name, entry in plan.search.space.items():
        _check_entry(plan, name, entry, recipes)
    for recipe in recipes:
        if not concerning(plan.search.space, recipe, recipes):
            raise PlanError(
                f"search.space concerns no setting of recipe {recipe.name!r}, which would get no trials where others "
                f"get {plan.search.trials}; add an entry that concerns all, such as run.learning_rate."
            )
    for task in plan.tasks:
        for protocol in plan.protocols:
            data = plan.data(task, protocol)
            _, _, test = resolve_splits(
                available_splits(data.source),
                train_split=data.train_split,
                dev_split=data.dev_split,
                test_split=data.test_split,
            )
            if test is None:  # it would be drawn anew for every seed
                raise PlanError(
                    f"a search needs a test split, and task {task!r} has none: rows that choose settings would be "
                    "test rows of a final run; give the data a test split."
                )


def _check_entry(plan: Plan, name: str, entry: Entry, recipes: Sequence[Recipe]) -> None:
    path = f"search.space.{name}"
    key, _, setting = name.partition(".")
    methods = list(dict.fromkeys(method for recipe in recipes for method in recipe.methods))
    if key == "run":
        if setting not in SEARCHABLE_RUN_SETTINGS:
            can = ", ".join(f"run.{one}" for one in SEARCHABLE_RUN_SETTINGS)
            near = difflib.get_close_matches(setting, SEARCHABLE_RUN_SETTINGS, n=1)
            hint = f"did you mean 'run.{near[0]}'?" if near else f"of the run block {can} can be."
            raise PlanError(f"{path} cannot be searched; {hint}")
    elif key not in methods:
        near = difflib.get_close_matches(key, methods, n=1)
        have = f"its methods are {', '.join(methods)}" if methods else "they have no methods"
        hint = f"did you mean '{near[0]}.{setting}'?" if near else f"{have}, and run.SETTING concerns all."
        raise PlanError(f"{path} concerns no recipe of the plan; {hint}")
    concerned = [recipe for recipe in recipes if name in concerning({name: entry}, recipe, recipes)]
    data = plan.data(next(iter(plan.tasks)), next(iter(plan.protocols)))
    for recipe in concerned or [recipe for recipe in recipes if key in recipe.methods]:
        config = RunConfig(data=data, model=plan.model, recipe=recipe, run=plan.run)
        try:
            for value in _ends(entry, key, setting):
                methods_of(with_settings(config, {name: value}))
        except (RecipeError, MethodError, RunError, PlanError) as error:
            raise PlanError(f"{path}, recipe {recipe.name!r}: {error}") from None


def _ends(entry: Entry, key: str, setting: str) -> list[Any]:
    """The values that a check must try: all of a list, both ends of a range."""
    if isinstance(entry, list):
        return entry
    kind = _number_type(key, setting)
    if kind is None:
        raise PlanError(f"{key}.{setting} is not a number; list its values.")
    if kind is int and not (entry.low.is_integer() and entry.high.is_integer()):
        raise PlanError(f"low and high must be integers; got {entry.low:g} and {entry.high:g}.")
    return [kind(entry.low), kind(entry.high)]


def _number_type(key: str, setting: str) -> type[int] | type[float] | None:
    """Which numbers a setting takes; None if it takes none."""
    hints = get_type_hints(RunSettings if key == "run" else method_class(key))
    hint = hints.get(setting, float)  # an unknown name is refused when its value is set
    kinds = (hint, *get_args(hint))
    return float if float in kinds else int if int in kinds and tuple not in kinds else None


def _suggested(trial: Any, name: str, entry: Entry, chain: Chain) -> Any:
    if isinstance(entry, list):  # by position, for a value may itself be a list
        return entry[trial.suggest_categorical(name, list(range(len(entry))))]
    if _number_type(*name.split(".", 1)) is int:
        return trial.suggest_int(name, int(entry.low), int(entry.high), log=entry.log)
    return trial.suggest_float(name, entry.low, entry.high, log=entry.log)


def _value(recipe: Recipe, key: str, setting: str) -> Any:
    """What a recipe sets, defaults filled in; None if it has no such setting."""
    methods = {method.key: method for method in recipe.build()}
    return getattr(methods.get(key), setting, None)


def _mean_score(records: Sequence[RunRecord]) -> float | None:
    """Over the seeds of a trial; None if a run failed."""
    scores = [record.scores.get("dev", {}).get(record.metric) for record in records if record.status == "done"]
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if len(known) == len(records) else None


def _units_per_step(records: Sequence[RunRecord]) -> float | None:
    costs = [record.cost for record in records if record.cost is not None]
    steps = sum(cost.optimizer_steps for cost in costs)
    return sum(cost.pass_units for cost in costs) / steps if steps else None


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise PlanError("a search needs Optuna; install it with pip install 'steadytune[hpo]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
