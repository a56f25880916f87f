"""Stages that several rows begin with are done once: a row takes over what another one has finished.

The name of a checkpoint holds the key of all it depends on, so a run finds it as its own; only rows that the
same version of the package has measured lend. It also holds what the stage has cost: a row counts that as
if it had done the stage itself.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from comparison.process import RESULT, RUN
from ditpress.recipes.checkpoint import MANIFEST, Checkpoints
from ditpress.recipes.engine import identity_of, stage_keys
from ditpress.recipes.loading import load_for
from ditpress.recipes.recipe import Recipe
from ditpress.recipes.run import open_run


def take_over(model: str, recipe: Recipe, folder: Path, code: str) -> list[str]:
    """Copy the recorded calls and the stages of ``recipe`` that another row has into the run of ``folder``.

    Args:
        model: as the recipe will be run on it.
        folder: of the row; the others lie beside it.
        code: the version of the package.

    Returns:
        The names of what was taken over.
    """
    denoiser, recipe = load_for(model, recipe)
    names = ["calibration", *(stage.kind for stage in recipe.stages)]
    taken = []
    with open_run(folder / RUN, identity_of(denoiser, recipe)) as run:
        done = Checkpoints(run)
        for index, (name, key) in enumerate(zip(names, stage_keys(denoiser, recipe), strict=True)):
            target = done.folder(index, name, key)
            manifests = sorted(folder.parent.glob(f"*/{RUN}/stages/{target.name}/{MANIFEST}"))
            found = [path.parent for path in manifests if _code(path.parents[3]) == code]
            if found and not target.exists():
                copy = partial(shutil.copytree, found[0], dirs_exist_ok=True)
                run.publish(target.relative_to(run.path).as_posix(), copy)
                taken.append(name)
    return taken


def _code(row: Path) -> str | None:
    """The version of the package that measured the row in this folder; None: it is not measured."""
    try:
        return str(json.loads((row / RESULT).read_text(encoding="utf-8"))["code"])
    except (OSError, ValueError, KeyError):
        return None
