"""The model of a run: loaded for its recipe, and loaded again when stages want the original."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from diffusers import DiffusionPipeline

from ditpress.compress.stage import complete
from ditpress.errors import InputError
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.recipes.recipe import Recipe
from ditpress.recipes.skeleton import planned


def load_for(
    model: str | DiffusionPipeline,
    recipe: Recipe,
    *,
    scheduler: str | Path | None = None,
    device: str = "cpu",
) -> tuple[Denoiser, Recipe]:
    """The denoiser, and the recipe with all written in that it takes from the model and from its own stages.

    A pipeline object stays as it is: its transformer is copied before the stages change it.

    Raises:
        InputError: no such model, or one that a stage of the recipe cannot take.
    """
    denoiser = load_model(model, recipe, scheduler, device)
    recipe = recipe.model_copy(update={"stages": complete(recipe.stages)})
    planned(denoiser, recipe.stages)
    calibration, validation = recipe.calibration, recipe.validation
    guidance = denoiser.default_guidance
    for stage in recipe.stages:
        scale = stage.builds_in(denoiser)
        guidance = guidance if scale is None else scale
        if scale is not None and validation.guidance not in (None, scale):
            raise InputError(
                f"validation.guidance {validation.guidance:g}: {stage.kind} builds in {scale:g}, and the "
                "result draws at no other scale; give both the same"
            )
    if calibration.guidance is None:
        calibration = calibration.model_copy(update={"guidance": guidance})
    if validation.guidance is None:
        validation = validation.model_copy(update={"guidance": guidance})
    if validation.steps is None:
        validation = validation.model_copy(update={"steps": denoiser.default_steps})
    return denoiser, recipe.model_copy(update={"calibration": calibration, "validation": validation})


def load_model(
    model: str | DiffusionPipeline, recipe: Recipe, scheduler: str | Path | None, device: str
) -> Denoiser:
    """The model as it is, from where it lies; of a pipeline object a copy of the transformer."""
    if isinstance(model, DiffusionPipeline):
        original = model
        model = copy.copy(original)
        model.transformer = copy.deepcopy(original.transformer)
    return load_denoiser(model, scheduler=scheduler, device=device, seed=recipe.seed)


def original_of(denoiser: Denoiser, load: Callable[[], Denoiser]) -> Denoiser:
    """The model as it was before all stages, in the pipeline of this run."""
    loaded = load()
    if loaded.fingerprint != denoiser.fingerprint:
        raise InputError(
            f"{denoiser.source.spec} was changed while the run was under way; run again with --fresh"
        )
    return denoiser.with_transformer(loaded.transformer)
