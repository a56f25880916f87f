"""The recipe behind a row."""

from __future__ import annotations

from typing import Protocol

from ditpress.compress import Stage
from ditpress.errors import InputError
from ditpress.recipes.recipe import Recipe, load_recipe


class RecipeRow(Protocol):
    """A row that a recipe makes."""

    @property
    def recipe(self) -> str: ...

    @property
    def overrides(self) -> tuple[str, ...]: ...

    @property
    def without(self) -> tuple[str, ...]: ...


def recipe_of(row: RecipeRow) -> Recipe:
    """The row's recipe, without images and times of its own: the benchmark draws them.

    Raises:
        InputError: no such recipe, setting or stage.
    """
    quick = ("validation.samples=0", "validation.speed=false")
    recipe = load_recipe(row.recipe, (*row.overrides, *quick))
    stages: tuple[Stage, ...] = recipe.stages
    for kind in row.without:
        if all(stage.kind != kind for stage in stages):
            raise InputError(f"recipe {row.recipe} has no stage {kind} to leave out")
        stages = tuple(stage for stage in stages if stage.kind != kind)
    return recipe.model_copy(update={"stages": stages})
