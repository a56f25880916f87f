"""Recipes: an ordered list of stages, and how they are calibrated, validated and exported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, field_validator

from ditpress.compress import Stage, check_order, parse_stage
from ditpress.compress.distill.data import DataStage
from ditpress.errors import InputError
from ditpress.recipes.builtin import builtin_names
from ditpress.recipes.override import apply_overrides
from ditpress.schema import Settings, parse, suggest


class CalibrationSpec(Settings):
    """Recorded calls: the pipeline draws ``samples`` images from noise in ``steps`` steps."""

    samples: int = Field(
        default=4, ge=1, description="images drawn at once; classifier-free guidance doubles the batch"
    )
    steps: int = Field(default=10, ge=1, description="denoising steps, spread over all timesteps")
    guidance: float | None = Field(default=None, description="guidance scale; null: the model's own")


class ValidationSpec(Settings):
    """Same-seed images of the original and the compressed model, and one timed denoising step."""

    samples: int = Field(default=128, ge=0, description="images per model; 0: no image figures")
    steps: int | None = Field(default=None, ge=1, description="denoising steps; null: the model's own")
    guidance: float | None = Field(default=None, description="guidance scale; null: the model's own")
    extractor: str | None = Field(
        default=None, description="CLIP folder for FID, KID, CLIP; null: the bundled one"
    )
    inception: str | None = Field(
        default=None,
        description="torch-fidelity's Inception-v3 for FID and its kin: path or hf:OWNER/NAME/FILE",
    )
    lpips: str | None = Field(
        default=None,
        description="torchvision's AlexNet or VGG16 for LPIPS: a path or hf:OWNER/NAME/FILE; null: CLIP",
    )
    reference: str | None = Field(
        default=None, description="folder or .npz of real images, or a reference batch of ADM's evaluation"
    )
    speed: bool = Field(default=True, description="time one denoising step against the original in fp32 ONNX")

    @field_validator("samples")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value == 1:
            raise InputError(
                "validation.samples: one image has no distribution to measure; use 0, or 2 and more"
            )
        return value


class ExportSpec(Settings):
    """The ONNX file."""

    target: Literal["ditpress", "portable"] = Field(
        default="ditpress", description="portable: operators of plain ONNX Runtime only"
    )


def _parse_stages(value: object) -> object:
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError("stages: expected a list with at least one stage")
    return tuple(parse_stage(item, f"stages[{index}]") for index, item in enumerate(value))


def _in_order(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    check_order(stages)
    return stages


Stages = Annotated[
    tuple[SerializeAsAny[Stage], ...], BeforeValidator(_parse_stages), AfterValidator(_in_order)
]


class Recipe(Settings):
    """What to do with a model."""

    name: str
    description: str = ""
    seed: int = Field(default=0, ge=0, description="seed of calibration, validation and random models")
    calibration: CalibrationSpec = CalibrationSpec()
    stages: Stages
    validation: ValidationSpec = ValidationSpec()
    export: ExportSpec = ExportSpec()

    def compression(self) -> dict[str, Any]:
        """The part that decides the bits of the compressed model, as plain data."""
        return self.model_dump(mode="json", include={"seed", "calibration", "stages"})

    def to_data(self) -> dict[str, Any]:
        """Plain data with every default written out; stages as ``{smooth: {alpha: 0.5}}``."""
        data = self.model_dump(mode="json")
        data["stages"] = [{stage.pop("kind"): stage} for stage in data["stages"]]
        return data

    def to_yaml(self) -> str:
        """YAML that :func:`load_recipe` reads back as an equal recipe."""
        return yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True, width=100)


def load_recipe(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by the name of a built-in one, by the path of a YAML file, or as it is.

    Args:
        recipe: ``"w4a8"``, ``"my.yaml"`` or a :class:`Recipe`.
        overrides: dotted settings such as ``"quantize.weights.group=64"``, applied in order.

    Raises:
        InputError: unknown recipe, unreadable YAML, unknown field, bad value; names it and the remedy.
    """
    parsed = recipe if isinstance(recipe, Recipe) else parse(Recipe, _read(recipe), str(recipe))
    if not overrides:
        return parsed
    return parse(Recipe, apply_overrides(parsed.to_data(), overrides), parsed.name)


def with_data(recipe: Recipe, path: Path) -> Recipe:
    """``recipe`` with the file ``path`` as the data of every stage that can learn from data.

    Raises:
        InputError: there is no such stage.
    """
    if not any(isinstance(stage, DataStage) for stage in recipe.stages):
        raise InputError(f"recipe {recipe.name}: has no stage that learns from data; leave --data out")
    update = {"data": os.path.abspath(path), "data_sha256": None}  # a resumed run may stand elsewhere
    stages = (
        stage.model_copy(update=update) if isinstance(stage, DataStage) else stage for stage in recipe.stages
    )
    return recipe.model_copy(update={"stages": tuple(stages)})


def _read(recipe: str | Path) -> dict[str, Any]:
    if isinstance(recipe, str) and recipe in builtin_names():
        text = resources.files("ditpress.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(recipe)
        if path.suffix not in (".yaml", ".yml"):
            raise InputError(
                f'unknown recipe "{recipe}"; {suggest(str(recipe), builtin_names())}, or a .yaml file'
            )
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"recipe {path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"recipe {path}: cannot be read ({error})") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise InputError(
            f"recipe {recipe}: not valid YAML{line}: {getattr(error, 'problem', error)}"
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"recipe {recipe}: expected fields such as stages, got {type(data).__name__}")
    return {"name": Path(recipe).stem, **data}
