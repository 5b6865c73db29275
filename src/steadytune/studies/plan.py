"""A plan: which tasks, protocols, recipes and seeds; and the cells that it stands for."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from steadytune.methods import METHODS
from steadytune.methods.cards import read_card
from steadytune.recipes import DataSettings, Recipe, RunConfig, RunSettings, load_recipe
from steadytune.recipes.recipe import read_text, read_yaml, validated
from steadytune.records import config_hash

Budget = Literal["equal-steps", "equal-compute", "both"]
Role = Literal["baseline", "recipe", "control"]


class PlanError(ValueError):
    """A plan cannot be read, or asks for what cannot be."""


class Cell(BaseModel):
    """One run of a study.

    Attributes:
        task: its name in the plan.
        protocol: its name in the plan.
        recipe: name of the recipe.
        role: "baseline", "recipe" or "control".
        budget: "steps" if all recipes take the same number of optimizer steps, "compute" if they take the same number
            of pass units.
        config: the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    protocol: str
    recipe: str
    role: Role
    budget: Literal["steps", "compute"]
    config: RunConfig

    @cached_property
    def id(self) -> str:
        """Content hash of the run alone: two plans that ask for one run share its record.

        What leaves the run as it is does not count: a recipe's title and where its values come from, and a setting at
        its default, so that one which a later version adds changes no hash.
        """
        remarks = {"recipe": {"title", "origin"}}
        return config_hash(self.config.model_dump(mode="json", exclude_defaults=True, exclude=remarks))

    def place(self) -> dict[str, str | int]:
        """What its record says about its place in the study."""
        names = self.model_dump(mode="json", include={"task", "protocol", "recipe", "role", "budget"})
        return {**names, "seed": self.config.seed}


class Plan(BaseModel):
    """What a study runs: every task under every protocol, with every recipe and seed.

    Attributes:
        name: of the study.
        model: "bundled", a local folder or a hub name.
        tasks: by name, settings of `data` that name a data set.
        protocols: by name, settings of `data` that say which rows and what is done to them.
        recipes: names, stacks or files; the first is the baseline.
        controls: also run the controls that the cards of the recipes' methods name.
        seeds: their number, or themselves.
        run: settings that all recipes share.
        budget: at equal optimizer steps, at equal pass units, or both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "study"
    model: str = "bundled"
    tasks: dict[str, dict[str, Any]]
    protocols: dict[str, dict[str, Any]] = {"as published": {}}
    recipes: list[str] = Field(min_length=1)
    controls: bool = False
    seeds: int | list[int] = 5
    run: RunSettings = RunSettings()
    budget: Budget = "equal-steps"

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
        """Recipes and what each is for, controls last and once.

        Raises:
            RecipeError: a recipe cannot be read.
        """
        recipes = [load_recipe(name) for name in self.recipes]
        arms: list[tuple[Recipe, Role]] = [
            (recipe, "recipe" if number else "baseline") for number, recipe in enumerate(recipes)
        ]
        if self.controls:
            for recipe in recipes:
                for name in controls_of(recipe):
                    if all(known.name != name for known, _ in arms):
                        arms.append((load_recipe(name), "control"))
        return arms

    def data(self, task: str, protocol: str) -> DataSettings:
        """Which rows.

        Args:
            task: its name in the plan.
            protocol: its name in the plan.
        Raises:
            RecipeError: an unknown setting, or one out of range.
        """
        where = f"task {task!r} with protocol {protocol!r}"
        return validated(DataSettings, {**self.tasks[task], **self.protocols[protocol]}, where)

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
                    data = self.data(task, protocol)
                    for budget in budgets.get(self.budget, ["steps", "compute"]):
                        for recipe, role in arms:
                            run = self.run
                            if budget == "compute":
                                assert steps is not None
                                run = run.model_copy(update={"steps": steps[task, protocol, recipe.name]})
                            config = RunConfig(data=data, model=self.model, recipe=recipe, run=run, seed=seed)
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
