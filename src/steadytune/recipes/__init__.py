"""Recipes: methods with their settings, and the run block that all recipes of a comparison share."""

from steadytune.recipes.recipe import Dropout, Recipe, RecipeError, bundled_recipes, load_recipe
from steadytune.recipes.run import DataSettings, RunConfig, RunSettings, load_run, protocol_hash, save_run

__all__ = [
    "DataSettings",
    "Dropout",
    "Recipe",
    "RecipeError",
    "RunConfig",
    "RunSettings",
    "bundled_recipes",
    "load_recipe",
    "load_run",
    "protocol_hash",
    "save_run",
]
