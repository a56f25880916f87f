"""The steps of a run: each writes one checkpoint from what the steps before it wrote."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import Call, record_calls, save_calls
from ditpress.compress import Stage
from ditpress.compress.distill.guidance import conditional, guided
from ditpress.compress.stage import RunContext
from ditpress.errors import InputError
from ditpress.export.onnx import export_transformer
from ditpress.export.session import OnnxTransformer
from ditpress.load.anatomy import tie_shared
from ditpress.load.checkpoint import save_pipeline, save_transformer
from ditpress.load.denoiser import Denoiser
from ditpress.load.weights import load_transformer
from ditpress.progress import track
from ditpress.recipes.recipe import ExportSpec, Recipe, ValidationSpec
from ditpress.recipes.skeleton import planned
from ditpress.validate.paired import OutputSqnr, first_tensor, output_sqnr
from ditpress.validate.sensitivity import layer_errors, low_bit_layers

SAMPLES, OUTPUTS = "samples.safetensors", "outputs.safetensors"
VALIDATION_SEEDS = 1_000_000  # validation images are never drawn from the noise of calibration
ERROR_CALLS = 8  # calls on which the error of single layers is measured; columns of report.html
MAX_PSNR = 200.0  # JSON holds no infinity: equal outputs count as this


def record(denoiser: Denoiser, recipe: Recipe, folder: Path) -> None:
    """Record the calibration calls."""
    spec = recipe.calibration
    calls = record_calls(
        denoiser, samples=spec.samples, steps=spec.steps, guidance=spec.guidance, seed=recipe.seed
    )
    save_calls(calls, folder)


def draw_original(
    denoiser: Denoiser, spec: ValidationSpec, seed: int, calls: Sequence[Call], folder: Path
) -> None:
    """Images and call outputs of the original model, before anything changes it."""
    if spec.samples:
        images = draw(denoiser, spec, seed, "samples of the original")
        if images.shape[1] not in (1, 3):
            raise InputError(
                f"{denoiser.source.spec}: draws {images.shape[1]} channels, not images (it has no VAE); "
                "set --samples 0, or give a pipeline folder with a VAE"
            )
        save_file({"images": images}, folder / SAMPLES)
    outputs = {
        str(index): run_call(denoiser.transformer, call) for index, call in enumerate(track(calls, "outputs"))
    }
    save_file(outputs, folder / OUTPUTS)


def outputs_of(original: Path) -> list[Tensor]:
    """The outputs of the recorded calls that :func:`draw_original` wrote."""
    found = load_file(original / OUTPUTS)
    return [found[str(index)] for index in range(len(found))]


def conditional_calls(denoiser: Denoiser, calls: Sequence[Call]) -> list[Call]:
    """The halves of calls recorded with guidance that a model with built-in guidance gets."""
    null_class = denoiser.transformer.config.num_embeds_ada_norm
    return [conditional(call, null_class) for call in calls]


def guided_outputs(denoiser: Denoiser, outputs: Sequence[Tensor], scale: float) -> list[Tensor]:
    """What such a model should answer, from the original's outputs of both halves."""
    channels = denoiser.transformer.config.in_channels
    return [guided(output, scale, channels) for output in outputs]


def first_seed(seed: int) -> int:
    """The seed of the first validation image of a recipe with ``seed``."""
    return seed + VALIDATION_SEEDS


def draw(denoiser: Denoiser, spec: ValidationSpec, seed: int, description: str) -> Tensor:
    """The validation images, float32 [n, C, H, W] in 0..1: image i of every model from the same seed."""
    first = first_seed(seed)
    seeds = range(first, first + spec.samples)
    return denoiser.sample(seeds, steps=spec.steps, guidance=spec.guidance, description=description)


def run_call(transformer: Any, call: Call) -> Tensor:
    """The output of one recorded call."""
    with torch.no_grad():
        return first_tensor(transformer(**call.kwargs)).float().cpu().contiguous()


def apply_stage(
    stage: Stage,
    denoiser: Denoiser,
    calls: Sequence[Call],
    folder: Path,
    context: RunContext | None = None,
) -> dict[str, Any]:
    """Apply one stage and save the transformer; facts: the error of every layer that became low-bit.

    ``context``: of a run; None: there is nothing but the calls.
    """
    statistics = Calibration(list(calls)).collect(denoiser.transformer, stage.wants(denoiser))
    layers = low_bit_layers(planned(denoiser, [stage])) - low_bit_layers(denoiser.transformer)
    reference = copy.deepcopy(denoiser.transformer) if layers else None
    found = stage.apply_in_run(denoiser, statistics, context or RunContext(calls))
    errors = {}
    if reference is not None:
        errors = layer_errors(reference, denoiser.transformer, spread(calls, ERROR_CALLS), layers)
    del reference
    save_transformer(denoiser.transformer, folder)
    return {"layer_errors": errors, **(found or {})}


def reload(denoiser: Denoiser, folder: Path) -> Denoiser:
    """The denoiser on the transformer that a stage saved.

    An undisturbed run goes through here after every stage too: a resumed one then starts from the same bytes
    at the same alignment, which matters to the last bit in vectorised sums.
    """
    device = next(
        (tensor.device for tensor in denoiser.transformer.state_dict().values()), torch.device("cpu")
    )
    denoiser.pipeline.transformer = None  # its memory is needed for the new one
    transformer = load_transformer(folder)
    tie_shared(transformer, denoiser.anatomy.shared(transformer))
    return denoiser.with_transformer(transformer.to(device))


def save_model(denoiser: Denoiser, folder: Path) -> None:
    """Write the diffusers folder."""
    save_pipeline(denoiser, folder)


def export(denoiser: Denoiser, spec: ExportSpec, calls: Sequence[Call], folder: Path) -> dict[str, Any]:
    """Write the ONNX folder; facts: how well it agrees with torch, measured on recorded calls."""
    _, parity = export_transformer(
        denoiser.transformer,
        folder / "transformer",
        [call.kwargs for call in calls],
        target=spec.target,
    )
    return {
        "max_abs": parity.max_abs,
        "psnr": min(parity.psnr, MAX_PSNR),
        "relative": parity.relative,
        "pieces": parity.pieces,
        "fusion": parity.fusion,
    }


def draw_compressed(
    denoiser: Denoiser,
    spec: ValidationSpec,
    seed: int,
    calls: Sequence[Call],
    expected: Sequence[Tensor],
    onnx: Path,
    folder: Path,
) -> dict[str, Any]:
    """Images through the exported ONNX; facts: the error of its outputs on ``calls``, which should be
    ``expected``."""
    transformer = OnnxTransformer(onnx)
    if spec.samples:
        shipped = denoiser.with_transformer(transformer)
        save_file({"images": draw(shipped, spec, seed, "samples of the compressed")}, folder / SAMPLES)
    order = iter(expected)
    sqnr = output_sqnr(lambda **_: next(order), transformer, calls)
    return {
        "sqnr_db": sqnr.total_db,
        "sqnr_by_timestep": sorted(sqnr.by_timestep.items(), reverse=True),
        "sqnr_error": sqnr.total_error,
    }


def sqnr_of(facts: dict[str, Any]) -> OutputSqnr:
    """The error that :func:`draw_compressed` noted."""
    by_timestep = {float(step): float(db) for step, db in facts["sqnr_by_timestep"]}
    return OutputSqnr(facts["sqnr_db"], by_timestep, facts.get("sqnr_error"))


def spread(calls: Sequence[Call], count: int) -> list[Call]:
    """At most ``count`` calls, evenly over the timesteps, the first and the last among them."""
    if len(calls) <= count:
        return list(calls)
    return [calls[index * (len(calls) - 1) // (count - 1)] for index in range(count)]
