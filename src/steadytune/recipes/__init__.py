"""Recipes: methods with their settings, and the run block that all recipes of a comparison share."""

from steadytune.recipes.pretraining import PretrainConfig, load_pretrain, load_pretrain_recipe, save_pretrain
from steadytune.recipes.recipe import Dropout, Recipe, RecipeError, bundled_recipes, load_recipe
from steadytune.recipes.run import DataSettings, RunConfig, RunSettings, load_run, protocol_hash, save_run

__all__ = [
    "DataSettings",
    "Dropout",
    "PretrainConfig",
    "Recipe",
    "RecipeError",
    "RunConfig",
    "RunSettings",
    "bundled_recipes",
    "load_pretrain",
    "load_pretrain_recipe",
    "load_recipe",
    "load_run",
    "protocol_hash",
    "save_pretrain",
    "save_run",
]
