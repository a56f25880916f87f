"""The recipe vq as a whole: two runs give the same bits, and the exported file computes what torch does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import QUICK, hashes, save_model

import ditpress
from ditpress.validate.report import load_report

TINY = [
    *QUICK,
    "vq.iterations=3",
    "vq.blocks.steps=3",
    "vq.finetune.steps=3",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_two_runs_give_the_same_bits_and_a_working_file(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ditpress.compress(str(model), "vq", out=tmp_path / name, overrides=TINY)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    report = load_report(tmp_path / "a" / "report.json")
    # End to end a last bit can move an int8 step; piece by piece the file computes what torch computes.
    pieces, whole = report.parity.pieces_relative, report.parity.onnx_vs_torch_relative
    error = whole if pieces is None else pieces  # it is not cut where the whole agrees
    assert error is not None
    assert error <= 1e-4
    config = json.loads((tmp_path / "a" / "model" / "transformer" / "config.json").read_text())
    formats = {layer["format"] for layer in config["quantization_config"]["layers"].values()}
    assert formats == {"vq-256x4"}
    # Codebooks count: 8192 bits each, beside 2 bits a weight and a scale and a bias of 32 bits a row.
    stored = report.size.layers
    assert sum(form == "vq-256x4" for form in stored.values()) == 14


def test_three_bits(model: Path, tmp_path: Path) -> None:
    ditpress.compress(str(model), "vq", out=tmp_path / "out", overrides=[*TINY, "vq.bits=3"])
    layers = load_report(tmp_path / "out" / "report.json").size.layers
    assert sum(form == "vq-64x2" for form in layers.values()) == 14
