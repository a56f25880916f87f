"""Whole runs of the floating-point recipes on a tiny model: what ships is what was planned and fitted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import QUICK, save_model

import ditpress
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.transforms import Subspace
from ditpress.kernels.wrap import LowRankLinear, SubspaceLinear, main_linear
from ditpress.load.denoiser import load_denoiser
from ditpress.recipes.estimate import estimate
from ditpress.recipes.recipe import load_recipe
from ditpress.validate.report import load_report

SETTINGS = [*QUICK, "calibration.steps=3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", ["fp4", "w4a8-fp"])
def test_run(name: str, model: Path, tmp_path: Path) -> None:
    ditpress.compress(str(model), name, out=tmp_path / "out", overrides=SETTINGS)
    report = load_report(tmp_path / "out" / "report.json")
    planned = estimate(load_denoiser(str(model)), load_recipe(name, SETTINGS))
    assert planned.compressed_bytes == report.size.compressed_bytes
    assert report.fidelity.paired.output_sqnr_db is not None
    assert report.fidelity.paired.output_sqnr_db > (12 if name == "fp4" else 20)
    assert report.parity.onnx_vs_torch_psnr is not None
    assert report.parity.onnx_vs_torch_psnr > 80
    block = ditpress.load(tmp_path / "out").transformer.transformer_blocks[1]
    linears = [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.attn1.to_out[0], block.ff.net[2]]
    assert all(isinstance(main_linear(linear), QuantizedLinear) for linear in linears)
    if name == "w4a8-fp":
        for linear in linears:
            assert isinstance(linear, LowRankLinear)
            inner = main_linear(linear)
            assert (inner.format, inner.activation) == ("fp4-e2m1", "fp8-e4m3")
        scale = main_linear(block.ff.net[2]).scale.double()
        ratios = (scale.amax(dim=1, keepdim=True) / scale).log2()
        assert scale.shape[1] == 4
        assert torch.equal(ratios, ratios.round())
        return
    for linear in linears:  # attention_out is rotated through the values, at no cost
        assert isinstance(linear, SubspaceLinear)
        assert (main_linear(linear).format, main_linear(linear).activation) == ("fp4", "fp4-e2m1")
    # One split for query, key and value, also in the file.
    assert linears[0].transform is linears[1].transform is linears[2].transform
    assert isinstance(linears[0].transform, Subspace)
    assert isinstance(main_linear(block.norm1.linear), QuantizedLinear)
    assert main_linear(block.norm1.linear).activation == "none"
