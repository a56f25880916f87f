"""A whole run of the recipe ``ternary``: training, checkpoint, ONNX, report."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_model import QUICK, hashes, save_model

import ditpress
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import NormedLinear
from ditpress.validate.report import load_report

TRAINING = [
    "ternary.samples=4",
    "ternary.sampling_steps=3",
    "ternary.batch=2",
    "ternary.training.steps=40",
    "ternary.norm=true",
    "ternary.low_rank=2",
]


def test_what_was_trained_ships_and_runs_repeat_themselves(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    settings = [setting for setting in QUICK if not setting.startswith(("quantize.", "smooth."))]
    for name in ("out", "again"):
        ditpress.compress(str(model), "ternary", out=tmp_path / name, overrides=[*settings, *TRAINING])
    assert hashes(tmp_path / "out") == hashes(tmp_path / "again")
    report = load_report(tmp_path / "out" / "report.json")
    assert [stage.name for stage in report.stages][2] == "ternary"
    assert report.size.compressed_bytes < report.size.original_bytes / 2
    assert report.fidelity.paired.output_sqnr_db is not None
    assert report.fidelity.paired.output_sqnr_db > 3
    # End to end a last bit can move an int8 step; piece by piece the file computes what torch computes.
    pieces, whole = report.parity.pieces_relative, report.parity.onnx_vs_torch_relative
    error = whole if pieces is None else pieces  # it is not cut where the whole agrees
    assert error is not None
    assert error <= 1e-4
    transformer = ditpress.load(tmp_path / "out").transformer
    block = transformer.transformer_blocks[0]
    assert isinstance(block.norm1.linear, NormedLinear)
    low_bit = [module for module in transformer.modules() if isinstance(module, QuantizedLinear)]
    assert {module.format for module in low_bit} == {"ternary", "int8"}  # int8: the branches
    stored = load_file(next((tmp_path / "out" / "model" / "transformer").glob("*.safetensors")))
    gain = stored["transformer_blocks.0.norm1.linear.gain"]
    assert torch.equal(gain, block.norm1.linear.gain)
