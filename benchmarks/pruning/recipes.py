"""The recipe behind a row."""

from __future__ import annotations

from comparison import recipes
from ditpress.recipes.recipe import Recipe
from pruning.finetune import with_fine_tuning
from pruning.rows import Row


def recipe_of(row: Row) -> Recipe:
    """The row's recipe, without images and times of its own: the benchmark draws and times.

    Raises:
        InputError: no such recipe, setting or stage.
    """
    recipe = recipes.recipe_of(row)
    return recipe.model_copy(update={"stages": with_fine_tuning(recipe.stages)}) if row.fine_tune else recipe
