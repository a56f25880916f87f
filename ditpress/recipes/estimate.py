"""What a run would give and cost, before it is started."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ditpress.calibrate.calls import record_calls
from ditpress.load.denoiser import Denoiser
from ditpress.recipes.recipe import Recipe
from ditpress.recipes.skeleton import planned, skeleton
from ditpress.recipes.steps import run_call
from ditpress.validate.size import size_of

FLOAT32_BYTES = 4
SECONDS_PER_WEIGHT = 1e-7  # search of scales and rounding, one core
EXPORT_CALLS = 32  # ONNX export with its comparison costs about as much as so many calls with one image
PROCESS_BYTES = 700_000_000  # Python, torch, diffusers, ONNX Runtime before any model
# Held at once at the worst moment: a float model, and its float twin for the error of single layers, or the
# original in ONNX Runtime, which packs the weights of its own.
FLOAT_COPIES = 3


@dataclass(frozen=True)
class RoleRow:
    """One line of the layer table: linears of one role that are stored alike."""

    role: str
    layers: int
    parameters: int
    format: str


@dataclass(frozen=True)
class Estimate:
    """Sizes are exact, time and memory rough: a factor of two either way."""

    model: str
    recipe: str
    parameters: int
    original_bytes: int
    compressed_bytes: int
    effective_bits: float
    seconds: float
    memory_bytes: int
    disk_bytes: int
    roles: tuple[RoleRow, ...]

    def to_data(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def estimate(denoiser: Denoiser, recipe: Recipe) -> Estimate:
    """Estimate a run of ``recipe``; writes nothing, runs the model once to time it.

    Raises:
        InputError: the model cannot take the recipe.
    """
    after = planned(denoiser, recipe.stages)
    size = size_of(skeleton(denoiser.transformer), after)
    return Estimate(
        model=denoiser.source.spec,
        recipe=recipe.name,
        parameters=size.parameters,
        original_bytes=size.original_bytes,
        compressed_bytes=size.compressed_bytes,
        effective_bits=size.effective_bits,
        seconds=_seconds(denoiser, recipe),
        memory_bytes=PROCESS_BYTES + FLOAT_COPIES * _float_bytes(denoiser),
        disk_bytes=disk_bytes(denoiser, recipe),
        roles=role_table(denoiser, recipe),
    )


def role_table(denoiser: Denoiser, recipe: Recipe) -> tuple[RoleRow, ...]:
    """Linears by role and planned format, in the order of the model."""
    formats: dict[str, str] = {}
    for stage in recipe.stages:
        for name, layer in stage.layer_formats(denoiser).items():
            weights = denoiser.transformer.get_submodule(name)
            group = "channel" if layer.group_size == weights.in_features else f"group {layer.group_size}"
            inputs = "" if layer.activation == "none" else f", {layer.activation} inputs"
            formats[name] = f"{layer.format}, {group}{inputs}"
    layers: Counter[tuple[str, str]] = Counter()
    parameters: Counter[tuple[str, str]] = Counter()
    for name, role in denoiser.anatomy.linears(denoiser.transformer).items():
        row = (role.value, formats.get(name, "as it is"))
        layers[row] += 1
        parameters[row] += sum(
            tensor.numel() for tensor in denoiser.transformer.get_submodule(name).parameters()
        )
    return tuple(RoleRow(role, count, parameters[role, form], form) for (role, form), count in layers.items())


def disk_bytes(denoiser: Denoiser, recipe: Recipe) -> int:
    """The most that a run writes: a copy of the model per stage, the original in ONNX, the results."""
    full = _float_bytes(denoiser)
    small = size_of(
        skeleton(denoiser.transformer), planned(denoiser, recipe.stages), float_bits=32
    ).compressed_bytes
    copies = sum(full if not stage.layer_formats(denoiser) else small for stage in recipe.stages)
    return copies + 2 * small + (full if recipe.validation.speed else 0) + 50_000_000


def _float_bytes(denoiser: Denoiser) -> int:
    return FLOAT32_BYTES * sum(parameter.numel() for parameter in denoiser.transformer.parameters())


def _seconds(denoiser: Denoiser, recipe: Recipe) -> float:
    """Calls of the transformer, weighed by one timed call with one image, and the weights to round."""
    (call,) = record_calls(
        denoiser, samples=1, steps=1, guidance=recipe.calibration.guidance, seed=recipe.seed
    )[:1]
    started = time.perf_counter()
    run_call(denoiser.transformer, call)
    per_image = time.perf_counter() - started
    calibration = recipe.calibration.samples * recipe.calibration.steps
    passes = 3 + sum(
        bool(stage.wants(denoiser)) for stage in recipe.stages
    )  # record, outputs, error of the outputs
    sampling = 2 * recipe.validation.samples * (recipe.validation.steps or denoiser.default_steps)
    exports = EXPORT_CALLS * (2 if recipe.validation.speed else 1)
    rounded = {name for stage in recipe.stages for name in stage.layer_formats(denoiser)}
    weights = sum(denoiser.transformer.get_submodule(name).weight.numel() for name in rounded)
    return per_image * (passes * calibration + sampling + exports) + SECONDS_PER_WEIGHT * weights
