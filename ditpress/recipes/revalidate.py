"""``ditpress validate OUT``: measure a finished run again, with other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditpress.compress.schema import parse
from ditpress.errors import InputError
from ditpress.recipes.engine import run_recipe
from ditpress.recipes.recipe import ValidationSpec, load_recipe
from ditpress.recipes.result import Result
from ditpress.recipes.run import read_marker


def revalidate(out: str | Path, settings: dict[str, Any]) -> Result:
    """Draw and measure again with ``settings`` of :class:`ValidationSpec` changed; rewrites the report.

    The compressed model and its ONNX file are taken as they are (and made again where they are damaged).

    Raises:
        InputError: ``out`` is no run folder, its original model is gone, or a setting is wrong.
    """
    path = Path(out)
    marker = read_marker(path)
    if marker is None or not (path / "recipe.yaml").is_file():
        raise InputError(f"{path}: no run folder of ditpress; give the OUT of a run")
    recipe = load_recipe(path / "recipe.yaml")
    validation = parse(ValidationSpec, {**recipe.validation.model_dump(), **settings}, "validation")
    recipe = recipe.model_copy(update={"validation": validation})
    return run_recipe(marker["model"], recipe, path, scheduler=marker["scheduler"])
