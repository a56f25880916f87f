"""What a run would give and cost, before it is started."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ditpress.calibrate.calls import record_calls
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import main_linear
from ditpress.load.anatomy import plain_name
from ditpress.load.denoiser import Denoiser
from ditpress.recipes.recipe import Recipe
from ditpress.recipes.skeleton import planned, skeleton
from ditpress.recipes.steps import run_call
from ditpress.recipes.storage import storage
from ditpress.validate.size import size_of

FLOAT32_BYTES = 4
SECONDS_PER_WEIGHT = 1e-7  # search of scales and rounding, one core
EXPORT_CALLS = 32  # ONNX export with its comparison costs about as much as so many calls with one image
PROCESS_BYTES = 700_000_000  # Python, torch, diffusers, ONNX Runtime before any model
# Held at once outside of stages: a float model, and its float twin for the error of single layers, or the
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
        seconds=_seconds(denoiser, recipe, after),
        memory_bytes=PROCESS_BYTES + _copies(recipe) * _float_bytes(denoiser),
        disk_bytes=disk_bytes(denoiser, recipe),
        roles=role_table(denoiser, after),
    )


def role_table(denoiser: Denoiser, after: nn.Module) -> tuple[RoleRow, ...]:
    """Linears of the planned transformer ``after`` by role and format, in the order of the model."""
    layers: Counter[tuple[str, str]] = Counter()
    parameters: Counter[tuple[str, str]] = Counter()
    for name, role in denoiser.anatomy.linears(after).items():
        linear, plain = main_linear(after.get_submodule(name)), plain_name(name)
        form = storage(after.get_submodule(plain))
        if form == storage(denoiser.transformer.get_submodule(plain)):
            form = "as it is"
        row = (role.value, form)
        layers[row] += 1
        bias = 0 if linear.bias is None else linear.out_features
        parameters[row] += linear.in_features * linear.out_features + bias
    return tuple(RoleRow(role, count, parameters[role, form], form) for (role, form), count in layers.items())


def disk_bytes(denoiser: Denoiser, recipe: Recipe) -> int:
    """The most that a run writes: a copy of the model per stage, the original in ONNX, the results."""
    before, after = (skeleton(denoiser.transformer) for _ in range(2))
    full = small = size_of(before, after, float_bits=32).compressed_bytes
    copies = 0
    for stage in recipe.stages:
        stage.plan(denoiser, after)
        small = size_of(before, after, float_bits=32).compressed_bytes
        copies += small
    unfinished = max(stage.saved_copies for stage in recipe.stages) * _float_bytes(denoiser)
    return copies + unfinished + 2 * small + (full if recipe.validation.speed else 0) + 50_000_000


def _copies(recipe: Recipe) -> int:
    return max(FLOAT_COPIES, *(stage.float_copies for stage in recipe.stages))


def _float_bytes(denoiser: Denoiser) -> int:
    return FLOAT32_BYTES * sum(parameter.numel() for parameter in denoiser.transformer.parameters())


def _seconds(denoiser: Denoiser, recipe: Recipe, after: nn.Module) -> float:
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
    trained = sum(stage.passes(denoiser) for stage in recipe.stages)
    weights = _low_bit_weights(after) - _low_bit_weights(denoiser.transformer)
    return per_image * (passes * calibration + sampling + exports + trained) + SECONDS_PER_WEIGHT * weights


def _low_bit_weights(transformer: nn.Module) -> int:
    layers = [module for module in transformer.modules() if isinstance(module, QuantizedLinear)]
    return sum(layer.in_features * layer.out_features for layer in layers)
