"""The public functions of the package: ``ditpress.compress`` and ``ditpress.load``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusers import DiffusionPipeline

from ditpress.fused import fuse as fuse_blocks
from ditpress.load.checkpoint import load_compressed
from ditpress.recipes.engine import run_recipe
from ditpress.recipes.recipe import Recipe, load_recipe
from ditpress.recipes.result import Result


def compress(
    model: str | DiffusionPipeline = "zoo:mnist-dit",
    recipe: str | Path | Recipe = "w4a8",
    *,
    out: str | Path,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    scheduler: str | Path | None = None,
    device: str = "cpu",
) -> Result:
    """Compress a Diffusion Transformer and prove that it still draws the same images.

    Args:
        model: ``"zoo:mnist-dit"``, a diffusers folder or hub id, a folder with a transformer, an earlier run,
            ``"random:DiT-XL/2"``, or a pipeline object, which is left as it is.
        recipe: name of a built-in recipe, path of a YAML file, or a :class:`Recipe`.
        out: the run folder; an unfinished run of the same model and recipe in it is resumed.
        overrides: settings of the recipe such as ``"quantize.weights.group=64"``.
        fresh: replace what is in ``out``, which must be a run folder.
        scheduler: a folder whose scheduler replaces the model's own.
        device: where torch computes.

    Raises:
        InputError: bad model, recipe, setting or folder, or a full disk; the message says what to do.
        StageError: a stage failed.
    """
    return run_recipe(
        model, load_recipe(recipe, overrides), out, fresh=fresh, scheduler=scheduler, device=device
    )


def load(path: str | Path, *, fuse: bool = True) -> DiffusionPipeline:
    """The compressed pipeline in a run folder (or in its ``model/``), on low-bit torch modules.

    Args:
        path: the folder.
        fuse: run blocks on the fused ops where a call allows it: on the CPU, in float32, without gradients
            (:func:`ditpress.fused.fuse`; ``ditpress.fused.unfuse`` undoes it). False: diffusers' own code
            around the low-bit layers.

    Raises:
        InputError: no finished run in ``path``.
    """
    pipeline = load_compressed(path).pipeline
    if fuse:
        fuse_blocks(pipeline.transformer)
    return pipeline
