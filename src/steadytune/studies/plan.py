"""A plan: which tasks, protocols, recipes and seeds; and the cells that it stands for."""

from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from steadytune.data.robustness import RobustnessSet
from steadytune.methods import METHODS
from steadytune.methods.cards import read_card
from steadytune.recipes import DataSettings, Recipe, RunConfig, RunSettings, load_recipe
from steadytune.recipes.recipe import read_text, read_yaml, validated
from steadytune.records import config_hash

Budget = Literal["equal-steps", "equal-compute", "both"]
Role = Literal["baseline", "recipe", "control"]
_END = 2**31  # of seeds


class PlanError(ValueError):
    """A plan cannot be read, or asks for what cannot be."""


class Range(BaseModel):
    """Numbers that a search draws from.

    Attributes:
        low: smallest.
        high: largest.
        log: every factor is as likely as any other, in place of every difference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    high: float
    log: bool = False


class Search(BaseModel):
    """How settings are chosen before the final runs: the same number of trials for every recipe.

    Attributes:
        trials: suggestions that are tried for one recipe on one task and protocol.
        seeds: of every trial; none of them is the seed of a final run.
        space: what a setting may be, by "run.SETTING" or "METHOD.SETTING": a range, or a list of values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: int = Field(8, ge=1)
    seeds: list[int] = [1000]
    space: dict[str, Range | list[Any]]

    @field_validator("space", mode="before")
    @classmethod
    def _ranges_and_lists(cls, space: Any) -> Any:
        if not isinstance(space, dict) or not space:
            raise ValueError(f"search.space must say what at least one setting may be; got {space!r:.80}.")
        return {name: _entry(f"search.space.{name}", value) for name, value in space.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> "Search":
        if (
            not self.seeds
            or len(set(self.seeds)) < len(self.seeds)
            or not 0 <= min(self.seeds) <= max(self.seeds) < _END
        ):
            raise ValueError(
                f"search.seeds must be a list of different numbers from 0 to {_END - 1}; got {self.seeds}."
            )
        return self


def _entry(path: str, value: Any) -> Any:
    """A range, or a list of different values."""
    if isinstance(value, list):
        if not value or any(one == other for index, one in enumerate(value) for other in value[:index]):
            raise ValueError(f"{path} must list at least one value, each once; got {value!r:.80}.")
        return value
    if not isinstance(value, Range | dict):
        raise ValueError(f"{path} must be a list of values, or have a low and a high; got {value!r:.80}.")
    found = value if isinstance(value, Range) else validated(Range, value, "", path=lambda place: f"{path}.{place[-1]}")
    if found.low >= found.high or (found.log and found.low <= 0):
        below = "0 < low < high with log: true" if found.log else "low < high"
        raise ValueError(f"{path} must have {below}; got {found.low:g} and {found.high:g}.")
    return found


class Cell(BaseModel):
    """One run of a study.

    Attributes:
        task: its name in the plan.
        protocol: its name in the plan.
        recipe: name of the recipe.
        role: "baseline", "recipe" or "control"; "trial" for a run that helps to choose settings.
        budget: "steps" if all recipes take the same number of optimizer steps, "compute" if they take the same number
            of pass units.
        config: the run.
        trial: number of the trial.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    protocol: str
    recipe: str
    role: Role | Literal["trial"]
    budget: Literal["steps", "compute"]
    config: RunConfig
    trial: int | None = None

    @cached_property
    def id(self) -> str:
        """Content hash of the run alone: two plans that ask for one run share its record."""
        return run_hash(self.config)

    def place(self) -> dict[str, str | int]:
        """What its record says about its place in the study."""
        names = self.model_dump(mode="json", include={"task", "protocol", "recipe", "role", "budget"})
        return {**names, "seed": self.config.seed, **({} if self.trial is None else {"trial": self.trial})}


def run_hash(config: RunConfig) -> str:
    """Content hash of what a run does.

    Args:
        config: the run.
    """
    return config_hash(config.essence())


class Plan(BaseModel):
    """What a study runs: every task under every protocol, with every recipe and seed.

    Attributes:
        name: of the study.
        model: "bundled", a local folder or a hub name, for every recipe that names no model of its own.
        tasks: by name, settings of `data` that name a data set; `robustness` lists further sets, as
            `SOURCE:SPLIT` or as settings of a `RobustnessSet`, that every trained model is also scored on.
        protocols: by name, settings of `data` that say which rows and what is done to them; `after` holds settings of
            data on which every recipe trains first (sequential transfer).
        recipes: names, stacks or files; the first is the baseline.
        second_baseline: a recipe that every gain is also held against, as "strong"; null for none.
        controls: also run the controls that the cards of the recipes' methods name.
        seeds: their number, or themselves.
        run: settings that all recipes share.
        budget: at equal optimizer steps, at equal pass units, or both.
        search: how settings are chosen; null to take those of the recipes.
        layers: also measure what happens inside the trained models, those of the first seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "study"
    model: str = "bundled"
    tasks: dict[str, dict[str, Any]]
    protocols: dict[str, dict[str, Any]] = {"as published": {}}
    recipes: list[str] = Field(min_length=1)
    second_baseline: str | None = None
    controls: bool = False
    seeds: int | list[int] = 5
    run: RunSettings = RunSettings()
    budget: Budget = "equal-steps"
    search: Search | None = None
    layers: bool = False

    @field_validator("search", mode="before")
    @classmethod
    def _readable_search(cls, search: Any) -> Any:
        if not isinstance(search, dict):
            return search
        return validated(Search, search, "", path=lambda place: ".".join(("search", *place)))

    @model_validator(mode="after")
    def _fits_together(self) -> "Plan":
        if not self.tasks or not self.protocols:
            raise ValueError("a plan needs at least one task and one protocol.")
        if len(set(self.recipes)) < len(self.recipes):
            raise ValueError(f"recipes must differ; got {', '.join(self.recipes)}.")
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list) or min(self.seed_list) < 0:
            raise ValueError(f"seeds must be a number >= 1 or a list of different numbers >= 0; got {self.seeds}.")
        if self.run.steps is not None and self.budget != "equal-steps":
            raise ValueError("run.steps fixes the steps of every recipe; use budget: equal-steps with it.")
        if self.search and (shared := sorted(set(self.search.seeds) & set(self.seed_list))):
            raise ValueError(f"search.seeds must not be final seeds; got {', '.join(map(str, shared))} in both.")
        if self.search and self.budget != "equal-steps" and self.run.accumulation_steps > 1:
            raise ValueError("a search with accumulation_steps above 1 cannot keep compute equal; use equal-steps.")
        if self.budget != "equal-steps" and any("after" in protocol for protocol in self.protocols.values()):
            raise ValueError("a protocol with `after` trains twice with one run block; it needs budget: equal-steps.")
        for name in self.tasks:
            if "/" in name or name.startswith("."):
                raise ValueError(
                    f"a task's name is also that of a file, so it holds no '/' and no leading dot; got {name!r}."
                )
        asked = {name: _robustness(name, settings) for name, settings in self.tasks.items()}
        rows = {name: {**settings, "robustness": None} for name, settings in self.tasks.items()}
        for name, other in combinations(self.tasks, 2):
            if rows[name] == rows[other] and asked[name] != asked[other]:
                raise ValueError(f"tasks {name!r} and {other!r} share their runs; give both the same robustness sets.")
        for name, settings in self.tasks.items():
            for protocol, more in self.protocols.items():
                if both := settings.keys() & more.keys():
                    raise ValueError(f"task {name!r} and protocol {protocol!r} both set {', '.join(sorted(both))}.")
        return self

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def arms(self) -> list[tuple[Recipe, Role]]:
        """Recipes and what each is for; the second baseline and other controls last and once.

        Raises:
            RecipeError: a recipe cannot be read.
            PlanError: two recipes have one name.
        """
        recipes = [load_recipe(name) for name in self.recipes]
        names = [recipe.name for recipe in recipes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise PlanError(f"two of the recipes {', '.join(self.recipes)} have the name {twice[0]!r}; rename one.")
        arms: list[tuple[Recipe, Role]] = [
            (recipe, "recipe" if number else "baseline") for number, recipe in enumerate(recipes)
        ]
        if (second := self.second()) is not None and second.name not in names:
            arms.append((second, "control"))
        if self.controls:
            for recipe in recipes:
                for name in controls_of(recipe):
                    if all(known.name != name for known, _ in arms):
                        arms.append((load_recipe(name), "control"))
        return arms

    def second(self) -> Recipe | None:
        """The second baseline.

        Raises:
            RecipeError: it cannot be read.
        """
        return None if self.second_baseline is None else load_recipe(self.second_baseline)

    def data(self, task: str, protocol: str) -> DataSettings:
        """Which rows.

        Args:
            task: its name in the plan.
            protocol: its name in the plan.
        Raises:
            RecipeError: an unknown setting, or one out of range.
        """
        where = f"task {task!r} with protocol {protocol!r}"
        rows = {name: value for name, value in self.protocols[protocol].items() if name != "after"}
        named = {name: value for name, value in self.tasks[task].items() if name != "robustness"}
        return validated(DataSettings, {**named, **rows}, where)

    def robustness(self, task: str) -> list[RobustnessSet]:
        """The sets that every model trained on a task is also scored on; they choose nothing.

        Args:
            task: its name in the plan.
        Raises:
            RecipeError: one cannot be read.
        """
        return _robustness(task, self.tasks[task])

    def after(self, protocol: str) -> DataSettings | None:
        """The rows on which every recipe trains first under a protocol, if it says so.

        Args:
            protocol: its name in the plan.
        Raises:
            RecipeError: an unknown setting, or one out of range.
        """
        first = self.protocols[protocol].get("after")
        return None if first is None else validated(DataSettings, first, f"after of protocol {protocol!r}")

    def config(self, task: str, protocol: str, recipe: Recipe, seed: int) -> RunConfig:
        """One run, at equal steps.

        Args:
            task: its name in the plan.
            protocol: its name in the plan.
            recipe: what is tried.
            seed: of all its random streams.
        Raises:
            RecipeError: a setting cannot be used.
        """
        data, first = self.data(task, protocol), self.after(protocol)
        model = self.model if recipe.model is None else recipe.model
        return RunConfig(data=data, model=model, recipe=recipe, run=self.run, seed=seed, after=first)

    def cells(self, steps: "dict[tuple[str, str, str], int] | None" = None) -> list[Cell]:
        """Every run, seeds outermost, so that an unfinished study is a smaller one.

        Args:
            steps: optimizer steps by task, protocol and recipe that give each recipe the same pass units; needed for
                a budget of equal compute.
        Raises:
            RecipeError: a recipe or a setting cannot be used.
        """
        arms, budgets = self.arms(), {"equal-steps": ["steps"], "equal-compute": ["compute"]}
        cells = []
        for seed in self.seed_list:
            for task in self.tasks:
                for protocol in self.protocols:
                    for budget in budgets.get(self.budget, ["steps", "compute"]):
                        for recipe, role in arms:
                            config = self.config(task, protocol, recipe, seed)
                            if budget == "compute":
                                assert steps is not None
                                config = config.with_run_setting("steps", steps[task, protocol, recipe.name])
                            cell = Cell(
                                task=task,
                                protocol=protocol,
                                recipe=recipe.name,
                                role=role,
                                budget="steps" if budget == "steps" else "compute",
                                config=config,
                            )
                            cells.append(cell)
        return cells


def _robustness(task: str, settings: Mapping[str, Any]) -> list[RobustnessSet]:
    """The robustness sets that the settings of a task ask for; tables among them are read like its own."""
    given = settings.get("robustness") or []
    if not isinstance(given, list) or not all(isinstance(one, str | dict) for one in given):
        raise PlanError(
            f"robustness of task {task!r} must be a list of SOURCE:SPLIT, or of mappings with a source; "
            f"got {given!r:.80}."
        )
    columns = {name: settings.get(name) for name in ("text_column", "pair_column", "label_column")}
    found = []
    for index, one in enumerate(given):
        where = f"robustness[{index}] of task {task!r}"
        entry = RobustnessSet.parse(one) if isinstance(one, str) else validated(RobustnessSet, one, where)
        found.append(entry.like(columns))
    return found


def controls_of(recipe: Recipe) -> list[str]:
    """Names of the recipes that isolate what the methods of a recipe add.

    Args:
        recipe: of one or several methods.
    """
    named = (name for key in recipe.methods if key in METHODS for name in read_card(key).front["controls"])
    return list(dict.fromkeys(named))


def load_plan(path: str | Path) -> Plan:
    """A plan from its YAML file.

    Args:
        path: of the file.
    Raises:
        PlanError: there is no such file.
        RecipeError: it cannot be read, or a value is out of range.
    """
    file = Path(path)
    if not file.is_file():
        raise PlanError(f"plan file {path} does not exist.")
    return validated(Plan, read_yaml(read_text(file), str(path)), str(path))


def dump_plan(plan: Plan) -> str:
    """A plan as YAML, every default filled in.

    Args:
        plan: what.
    """
    return yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
