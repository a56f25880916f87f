"""The end of a run: figures, report.json, report.html, samples.png."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from ditpress.load.denoiser import Denoiser
from ditpress.load.zoo import zoo_path
from ditpress.recipes.checkpoint import Manifest
from ditpress.recipes.recipe import Recipe, ValidationSpec
from ditpress.recipes.result import Result
from ditpress.recipes.run import RunFolder
from ditpress.recipes.steps import SAMPLES, first_seed
from ditpress.validate.environment import environment
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.frontier_plot import frontier_png
from ditpress.validate.grid import image_grid, png_bytes
from ditpress.validate.html import Pictures, render_html
from ditpress.validate.inception import InceptionExtractor
from ditpress.validate.lpips import Lpips
from ditpress.validate.paired import OutputSqnr
from ditpress.validate.reference import MNIST_TEST, Reference, load_reference
from ditpress.validate.report import Fidelity, Parity, Report, Speed, StageRecord
from ditpress.validate.sensitivity import LayerError, details
from ditpress.validate.size import size_of
from ditpress.validate.table import Networks
from ditpress.validate.validation import validate


def conclude(
    *,
    run: RunFolder,
    denoiser: Denoiser,
    recipe: Recipe,
    before: nn.Module,
    original: Path,
    compressed: Path,
    errors: dict[str, Any],
    parity: dict[str, Any],
    sqnr: OutputSqnr,
    speed: dict[str, Any] | None,
    records: Sequence[Manifest],
) -> Result:
    """Measure what the steps left behind and write the report.

    Args:
        run, denoiser, recipe: of this run; the denoiser holds the compressed transformer.
        before: skeleton of the original transformer.
        original, compressed: folders of the steps that drew the samples.
        errors: what LayerError holds, by layer; parity, sqnr, speed: facts of the steps.
        records: the finished steps in order.
    """
    pictures, fidelity = None, Fidelity.without_samples(sqnr.total_db)
    count = recipe.validation.samples
    if count:
        first, second = (load_file(folder / SAMPLES)["images"] for folder in (original, compressed))
        captions = denoiser.captions(denoiser.conditions(count))
        pictures = Pictures(first, second, captions)
        fidelity = measure_fidelity(denoiser, recipe, first, second, captions, sqnr)
    onnx_bytes = sum(file.stat().st_size for file in (run.path / "onnx").rglob("*") if file.is_file())
    here = environment()
    layers = {name: LayerError(*error) for name, error in errors.items()}
    shown = details(before, denoiser.transformer, errors=layers, sqnr=sqnr)
    report = Report(
        schema=1,
        recipe=recipe.name,
        model=denoiser.source.spec,
        seed=recipe.seed,
        environment=here,
        size=size_of(before, denoiser.transformer, onnx_bytes=onnx_bytes),
        fidelity=fidelity,
        parity=Parity(
            onnx_vs_torch_max_abs=parity["max_abs"],
            onnx_vs_torch_psnr=parity["psnr"],
            onnx_vs_torch_relative=parity["relative"],
            pieces_relative=parity["pieces"],
            fusion_relative=parity.get("fusion"),
        ),
        speed=Speed(
            hardware=here.cpu, threads=here.threads, original_ms=None, compressed_ms=None, speedup=None
        )
        if speed is None
        else Speed(**speed),
        stages=[
            StageRecord(name=record.name, seconds=record.seconds, peak_rss_bytes=record.peak_rss_bytes)
            for record in records
        ],
        details=shown,
    )
    if pictures is not None:
        grid = image_grid(pictures.original, pictures.compressed, captions=pictures.captions)
        run.write("samples.png", png_bytes(grid))
    page = render_html(report, recipe_yaml=recipe.to_yaml(), details=shown, pictures=pictures)
    run.write("report.html", page.encode())
    for frontier in (record.facts["frontier"] for record in records if "frontier" in record.facts):
        run.write("frontier.json", (json.dumps(frontier, indent=2) + "\n").encode())
        run.write("frontier.png", frontier_png(frontier))
    run.write("report.json", report.to_json().encode())
    return Result(run.path)


def measure_fidelity(
    denoiser: Denoiser,
    recipe: Recipe,
    original: Tensor,
    compressed: Tensor,
    captions: Sequence[str],
    sqnr: OutputSqnr | None,
) -> Fidelity:
    """The fidelity part of the report from two sets of same-seed images."""
    spec = recipe.validation
    found = networks(spec)
    return validate(
        original,
        compressed,
        extractor=found.clip,
        inception=found.inception,
        lpips=found.lpips,
        steps=spec.steps,
        guidance=spec.guidance,
        first_seed=first_seed(recipe.seed),
        captions=captions,
        reference=real_images(denoiser, spec),
        output_sqnr_db=None if sqnr is None else sqnr.total_db,
        output_sqnr_error=None if sqnr is None else sqnr.total_error,
    )


def networks(spec: ValidationSpec) -> Networks:
    """The networks behind the figures that the recipe names, or the bundled CLIP."""
    inception = None if spec.inception is None else InceptionExtractor(spec.inception)
    lpips = None if spec.lpips is None else Lpips(spec.lpips)
    return Networks(FeatureExtractor(spec.extractor or zoo_path("mnist-clip")), inception, lpips)


def real_images(denoiser: Denoiser, spec: ValidationSpec) -> Reference | None:
    """The reference images that the recipe names, or those that belong to a bundled model, or none."""
    if spec.reference is not None:
        return load_reference(spec.reference)
    return load_reference(MNIST_TEST) if denoiser.source.spec == "zoo:mnist-dit" else None
