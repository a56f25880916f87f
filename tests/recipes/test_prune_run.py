"""Whole runs with width pruning: float, and quantized after it; checkpoint, ONNX, report, command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_model import QUICK, hashes, kill_when, save_model

import ditpress
from ditpress.cli import main
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.widths import cut_sizes
from ditpress.recipes.recipe import load_recipe
from ditpress.validate.report import load_report

ROUND = "prune-width.round_to.mlp=64"
SIZES = {
    f"transformer_blocks.{index}.{name}": size
    for index in range(2)
    for name, size in (("attn1", {"heads": 2, "head_dim": 16}), ("ff", {"hidden": 128}))
}


def test_pruned_float_models_ship_and_runs_repeat_themselves(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    for name in ("out", "again"):
        ditpress.compress(str(model), "prune-width", out=tmp_path / name, overrides=[*QUICK, ROUND])
    assert hashes(tmp_path / "out") == hashes(tmp_path / "again")
    kill_when(".part-stages-01-*", "prune-width", model, tmp_path / "killed", [*QUICK, ROUND])
    assert not list((tmp_path / "killed").glob("stages/01-*"))
    ditpress.compress(str(model), "prune-width", out=tmp_path / "killed", overrides=[*QUICK, ROUND])
    assert hashes(tmp_path / "out") == hashes(tmp_path / "killed")
    report = load_report(tmp_path / "out" / "report.json")
    assert [stage.name for stage in report.stages][2] == "prune-width"
    assert set(report.size.layers.values()) <= {"fp16", "fp32"}
    assert report.size.compressed_bytes < 0.85 * report.size.original_bytes
    assert report.fidelity.paired.output_sqnr_db is not None
    assert report.fidelity.paired.output_sqnr_db > 10
    assert report.parity.onnx_vs_torch_relative is not None
    assert report.parity.onnx_vs_torch_relative <= 1e-4
    transformer = ditpress.load(tmp_path / "out").transformer
    assert cut_sizes(transformer) == SIZES
    stored = load_file(next((tmp_path / "out" / "model" / "transformer").glob("*.safetensors")))
    assert stored["transformer_blocks.0.ff.net.2.weight"].shape == (64, 128)
    assert stored["transformer_blocks.1.attn1.to_out.0.weight"].shape == (64, 32)
    graph = onnx.load(tmp_path / "out" / "onnx" / "transformer" / "model.onnx").graph
    narrow = [tensor.name for tensor in graph.initializer if sorted(tensor.dims) == [64, 128]]
    assert len(narrow) == 2 * 2 + 1  # two in each block, and the shift and scale of the last norm


def test_quantized_after_pruning_ships(tmp_path: Path) -> None:
    """The stages of w4a8 behind prune-width, in one recipe; the residual stream is narrower too."""
    model = save_model(tmp_path / "model")
    recipe = load_recipe("w4a8").to_data()
    prune = {"prune-width": {"mlp": 0.5, "heads": 0.25, "residual": 0.25, "round_to": {"residual": 16}}}
    (tmp_path / "chain.yaml").write_text(
        yaml.safe_dump(recipe | {"name": "chain", "stages": [prune, *recipe["stages"]]})
    )
    groups = ["quantize.weights.group=16", "quantize.modulation.group=16"]
    ditpress.compress(
        str(model), str(tmp_path / "chain.yaml"), out=tmp_path / "out", overrides=[*QUICK, *groups]
    )
    report = load_report(tmp_path / "out" / "report.json")
    assert [stage.name for stage in report.stages][2:5] == ["prune-width", "smooth", "quantize"]
    assert report.size.compressed_bytes < report.size.original_bytes / 2
    assert report.fidelity.paired.output_sqnr_db is not None
    assert report.fidelity.paired.output_sqnr_db > 5
    pieces, whole = report.parity.pieces_relative, report.parity.onnx_vs_torch_relative
    error = whole if pieces is None else pieces
    assert error is not None
    assert error <= 1e-4
    pipeline = ditpress.load(tmp_path / "out")
    block = pipeline.transformer.transformer_blocks[0]
    assert (block.attn1.heads, block.attn1.to_q.out_features, block.ff.net[2].in_features) == (3, 48, 128)
    assert (block.norm1.linear.in_features, block.norm1.linear.out_features) == (64, 6 * 48)
    assert pipeline.transformer.pos_embed.pos_embed.shape[-1] == block.ff.net[2].out_features == 48
    assert isinstance(block.ff.net[2], QuantizedLinear)
    images = pipeline(class_labels=[0], num_inference_steps=2, output_type="pt").images
    assert torch.isfinite(torch.as_tensor(images)).all()


def test_estimates_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model")
    narrow = ["prune-width.residual=0.25", "prune-width.round_to.residual=16"]
    settings = [part for setting in [*QUICK, ROUND, *narrow] for part in ("--set", setting)]
    command = ["prune-width", str(model), "-o", str(tmp_path / "out"), *settings, "--dry-run", "--json"]
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code in (0, None)
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["compressed_bytes"] < 0.75 * estimate["original_bytes"]
    assert not (tmp_path / "out").exists()
