"""What a row made, and what its images and outputs are worth."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ditpress
from comparison.original import FIRST_SEED, GUIDANCE, Conditions, Original
from comparison.process import RUN
from ditpress.export.session import OnnxTransformer
from ditpress.load.denoiser import load_denoiser
from ditpress.recipes.measure import Measure
from ditpress.recipes.recipe import Recipe
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.paired import output_sqnr
from ditpress.validate.size import size_of
from ditpress.validate.validation import validate

sys.path.append(str(Path(__file__).resolve().parents[2] / "training"))

from recognise import recognised  # lies in training/

GUIDED_SAMPLES = 1000  # behind the recognised share, as in benchmarks/figures.py


@dataclass
class Made:
    """What a row is measured by.

    Attributes:
        transformer: draws the images.
        engine: "onnx" or "torch".
        bytes: stored, as ``ditpress.validate.size`` counts.
        file_bytes: of the ONNX folder; None: there is none.
        cost: of making it.
    """

    transformer: Any
    engine: str
    bytes: int
    file_bytes: int | None
    cost: Measure


def make_by_recipe(recipe: Recipe, conditions: Conditions, folder: Path) -> Made:
    """Run the recipe in ``folder/RUN``, resumed where an earlier process left it."""
    result = ditpress.compress(conditions.model, recipe, out=folder / RUN)
    kinds = {stage.kind for stage in recipe.stages}
    records = [record for record in result.report.data.stages if record.name in kinds | {"calibration"}]
    cost = Measure(sum(r.seconds for r in records), max(r.peak_rss_bytes for r in records))
    onnx = folder / RUN / "onnx" / "transformer"
    stored = result.report.data.size.compressed_bytes
    return Made(OnnxTransformer(onnx), "onnx", stored, folder_bytes(onnx), cost)


def make_original(conditions: Conditions, original: Original) -> Made:
    """What all others are measured against."""
    denoiser = load_denoiser(conditions.model)
    original.make(denoiser, conditions)
    stored = size_of(denoiser.transformer, denoiser.transformer).original_bytes
    return Made(denoiser.transformer, "torch", stored, folder_bytes(original.onnx), Measure())


def judge(
    made: Made,
    row: Any,
    conditions: Conditions,
    original: Original,
    *,
    share: bool = True,
) -> dict[str, Any]:
    """Draw and measure what was made.

    Args:
        row: of which it is.
        original: finished.
        share: measure the recognised share, of a model with real images.

    Returns:
        What ``result.json`` holds.
    """
    denoiser = load_denoiser(conditions.model)
    parameters = sum(parameter.numel() for parameter in denoiser.transformer.parameters())
    itself = row.kind == "original"
    drawing = denoiser if itself else denoiser.with_transformer(made.transformer)
    before, expected = original.images, iter(original.outputs)
    after = before
    sqnr = None
    if not itself:
        sqnr = output_sqnr(lambda **_: next(expected), made.transformer, original.calls).total_db
        after = conditions.draw(drawing, FIRST_SEED, row.name)
    fidelity = validate(
        before,
        after,
        extractor=FeatureExtractor(),
        steps=conditions.steps or denoiser.default_steps,
        guidance=GUIDANCE,
        first_seed=FIRST_SEED,
        captions=denoiser.captions(denoiser.conditions(len(before))),
        reference=conditions.reference,
        output_sqnr_db=sqnr,
    )
    found = None
    if share and conditions.reference is not None:
        found = recognised(drawing, min(GUIDED_SAMPLES, conditions.samples), conditions.steps, None, 0)
    result = {
        "row": row.to_data(),
        "engine": made.engine,
        "bytes": made.bytes,
        "effective_bits": 8 * made.bytes / parameters,
        "file_bytes": made.file_bytes,
        "seconds": made.cost.seconds,
        "peak_rss_bytes": made.cost.peak_rss_bytes,
        "fidelity": fidelity.model_dump(mode="json"),
        "recognised": found,
    }
    return result | (original.facts if itself else {})


def folder_bytes(folder: Path) -> int:
    """Of the ONNX files in ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("model.onnx*"))
