"""One row in a process of its own: ``python -m fidelity.worker '<job as JSON>'`` writes ``result.json``."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any, cast

from torch import nn

import ditpress
from ditpress.export.onnx import export_transformer
from ditpress.export.session import OnnxTransformer
from ditpress.files import write_atomic
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.anatomy import plain_name
from ditpress.load.checkpoint import load_compressed
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.load.modules import replace_module
from ditpress.recipes.measure import Measure, measure
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.paired import output_sqnr
from ditpress.validate.size import size_of
from ditpress.validate.validation import validate
from fidelity import peers
from fidelity.original import FIRST_SEED, GUIDANCE, Conditions, Original
from fidelity.plain import plain_linear
from fidelity.recipes import recipe_of
from fidelity.rows import DRAWN_GUIDED, Row

sys.path.append(str(Path(__file__).resolve().parents[2] / "training"))

from recognise import recognised  # lies in training/

RUN = "run"  # the run folder of a row that a recipe makes
ABLATION_SAMPLES = 100  # enough for paired figures; these rows have no FID
GUIDED_SAMPLES = 1000  # behind the recognised share, as in benchmarks/figures.py


class Made:
    """What a row is measured by.

    Attributes:
        transformer: draws the images.
        engine: "onnx" or "torch".
        bytes: stored, as ``ditpress.validate.size`` counts.
        file_bytes: of the ONNX folder; None: there is none.
        cost: of making it.
    """

    def __init__(
        self, transformer: Any, engine: str, stored: int, file_bytes: int | None, cost: Measure
    ) -> None:
        self.transformer = transformer
        self.engine = engine
        self.bytes = stored
        self.file_bytes = file_bytes
        self.cost = cost


def make_by_recipe(row: Row, conditions: Conditions, folder: Path) -> Made:
    """Run the recipe, resumed where an earlier process left it."""
    recipe = recipe_of(row)
    result = ditpress.compress(conditions.model, recipe, out=folder / RUN)
    kinds = {stage.kind for stage in recipe.stages}
    records = [record for record in result.report.data.stages if record.name in kinds | {"calibration"}]
    cost = Measure(sum(r.seconds for r in records), max(r.peak_rss_bytes for r in records))
    onnx = folder / RUN / "onnx" / "transformer"
    return Made(
        OnnxTransformer(onnx),
        "onnx",
        result.report.data.size.compressed_bytes,
        _folder_bytes(onnx),
        cost,
    )


def make_plain(conditions: Conditions, like: Path, original: Original, folder: Path) -> Made:
    """Every low-bit layer of the recipe's run ``like`` again, by plain rounding of the original's weights."""
    denoiser = load_denoiser(conditions.model)
    compressed = load_compressed(like).pipeline.transformer
    before = copy.deepcopy(denoiser.transformer)
    cost = Measure()
    with measure(cost):
        for name, layer in low_bit_layers(denoiser, compressed).items():
            linear = cast(nn.Linear, denoiser.transformer.get_submodule(name))
            replace_module(denoiser.transformer, linear, plain_linear(linear, layer, name))
    onnx = folder / "onnx" / "transformer"
    export_transformer(denoiser.transformer, onnx, [call.kwargs for call in original.calls])
    stored = size_of(before, denoiser.transformer).compressed_bytes
    return Made(OnnxTransformer(onnx), "onnx", stored, _folder_bytes(onnx), cost)


def low_bit_layers(denoiser: Denoiser, compressed: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized main linears of ``compressed``, by the names that they have in the original."""
    found = {name: compressed.get_submodule(name) for name in denoiser.anatomy.linears(compressed)}
    return {plain_name(name): module for name, module in found.items() if isinstance(module, QuantizedLinear)}


def make_peer(row: Row, conditions: Conditions, original: Original, folder: Path) -> Made:
    """The row of another tool."""
    denoiser = load_denoiser(conditions.model)
    tool, *arguments = row.peer.split()
    cost = Measure()
    if tool == "onnxruntime":
        algorithm, block = arguments
        onnx = folder / "onnx" / "transformer"
        with measure(cost):
            bits = peers.onnxruntime_nbits(denoiser, algorithm, int(block), original.onnx, onnx)
        made = OnnxTransformer(onnx)
        return Made(made, "onnx", peers.stored_bytes(denoiser, bits), _folder_bytes(onnx), cost)
    with measure(cost):
        if tool == "bitsandbytes":
            transformer, bits = peers.bitsandbytes_4bit(denoiser, *arguments)
        else:
            kind, *group = arguments
            transformer, bits = peers.torchao_quantized(denoiser, kind, *map(int, group))
    return Made(transformer, "torch", peers.stored_bytes(denoiser, bits), None, cost)


def make_original(conditions: Conditions, original: Original) -> Made:
    """What all others are measured against."""
    denoiser = load_denoiser(conditions.model)
    cost = Measure()
    original.make(denoiser, conditions)
    stored = size_of(denoiser.transformer, denoiser.transformer).original_bytes
    return Made(denoiser.transformer, "torch", stored, _folder_bytes(original.onnx), cost)


def run(
    row: Row, conditions: Conditions, folder: Path, original: Original, like: Path | None
) -> dict[str, Any]:
    """Make, draw and measure one row; returns what ``result.json`` holds.

    Args:
        folder: of the row.
        original: of this run, finished unless this is its row.
        like: the run folder of the recipe that a plain row rounds like.
    """
    if row.kind == "original":
        made = make_original(conditions, original)
    elif row.kind == "plain":
        assert like is not None
        made = make_plain(conditions, like, original, folder)
    elif row.kind == "peer":
        made = make_peer(row, conditions, original, folder)
    else:
        made = make_by_recipe(row, conditions, folder)
    denoiser = load_denoiser(conditions.model)
    parameters = sum(parameter.numel() for parameter in denoiser.transformer.parameters())
    drawing = denoiser if row.kind == "original" else denoiser.with_transformer(made.transformer)
    ablation = row.kind == "ablation"
    count = min(ABLATION_SAMPLES, conditions.samples) if ablation else conditions.samples
    before, expected = original.images[:count], iter(original.outputs)
    after = before
    sqnr = None
    if row.kind != "original":
        sqnr = output_sqnr(lambda **_: next(expected), made.transformer, original.calls).total_db
        after = conditions.draw(drawing, FIRST_SEED, row.name, count)
    fidelity = validate(
        before,
        after,
        extractor=FeatureExtractor(),
        steps=conditions.steps or denoiser.default_steps,
        guidance=GUIDANCE,
        first_seed=FIRST_SEED,
        captions=denoiser.captions(denoiser.conditions(len(before))),
        reference=None if ablation else conditions.reference,
        output_sqnr_db=sqnr,
    )
    share = None
    if row.kind in DRAWN_GUIDED and conditions.reference is not None:
        share = recognised(drawing, min(GUIDED_SAMPLES, conditions.samples), conditions.steps, None, 0)
    result = {
        "row": row.to_data(),
        "engine": made.engine,
        "bytes": made.bytes,
        "effective_bits": 8 * made.bytes / parameters,
        "file_bytes": made.file_bytes,
        "seconds": made.cost.seconds,
        "peak_rss_bytes": made.cost.peak_rss_bytes,
        "fidelity": fidelity.model_dump(mode="json"),
        "recognised": share,
    }
    return result | (original.facts if row.kind == "original" else {})


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("model.onnx*"))


def main() -> None:
    job = json.loads(sys.argv[1])
    like = job["like"]
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    result = run(
        Row.from_data(job["row"]),
        Conditions(**job["conditions"]),
        folder,
        Original(Path(job["original"])),
        None if like is None else Path(like),
    )
    result["code"] = job["code"]
    write_atomic(folder / "result.json", (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
