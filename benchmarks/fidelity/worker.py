"""One row in a process of its own: ``python -m fidelity.worker '<job as JSON>'`` writes ``result.json``."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any, cast

from torch import nn

from comparison.judge import Made, folder_bytes, judge, make_by_recipe, make_original
from comparison.original import Conditions, Original
from comparison.process import finish
from comparison.recipes import recipe_of
from ditpress.export.onnx import export_transformer
from ditpress.export.session import OnnxTransformer
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.anatomy import plain_name
from ditpress.load.checkpoint import load_compressed
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.load.modules import replace_module
from ditpress.recipes.measure import Measure, measure
from ditpress.validate.size import size_of
from fidelity import peers
from fidelity.plain import plain_linear
from fidelity.rows import DRAWN_GUIDED, Row


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
    return Made(OnnxTransformer(onnx), "onnx", stored, folder_bytes(onnx), cost)


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
        return Made(made, "onnx", peers.stored_bytes(denoiser, bits), folder_bytes(onnx), cost)
    with measure(cost):
        if tool == "bitsandbytes":
            transformer, bits = peers.bitsandbytes_4bit(denoiser, *arguments)
        else:
            kind, *group = arguments
            transformer, bits = peers.torchao_quantized(denoiser, kind, *map(int, group))
    return Made(transformer, "torch", peers.stored_bytes(denoiser, bits), None, cost)


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
        made = make_by_recipe(recipe_of(row), conditions, folder)
    return judge(made, row, conditions, original, share=row.kind in DRAWN_GUIDED)


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
    finish(job, result)


if __name__ == "__main__":
    main()
