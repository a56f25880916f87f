"""Piece by piece parity sees every fault of a piece, also one that hides in the quantization noise."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from export_models import make_calls, make_quantized
from onnx import numpy_helper

from ditpress.export.openloop import compare_pieces
from ditpress.export.parity import Parity, cases, compare
from ditpress.export.session import onnx_library_path, onnx_session

LIBRARIES = [False] + ([True] if onnx_library_path() is not None else [])


@pytest.mark.parametrize("library", LIBRARIES)
def test_pieces_of_a_right_export_agree(exported, library):
    path, model = exported()
    assert compare_pieces(path, model, make_calls()[0], (1, 3), library=library) <= 1e-5
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["config.json", "model.onnx"]


@pytest.mark.parametrize(
    "damaged",
    ["transformer_blocks.1.attn1.to_v.codes", "transformer_blocks.0.ff.net.2.bias", "proj_out_2.bias"],
)
def test_pieces_show_a_damaged_layer(exported, tmp_path, damaged):
    """In a low-bit layer and in a float one; small enough to hide in the quantization noise at the end."""
    path, model = exported()
    proto = onnx.load(path)
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == f"transformer.{damaged}")
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1 if damaged.endswith("codes") else 0.02
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, tmp_path / "model.onnx")
    assert compare_pieces(tmp_path / "model.onnx", model, make_calls()[0], (2,)) > 1e-4


def test_what_holds():
    assert Parity(1e-5, 1.0, 100.0).holds(1e-4)
    assert not Parity(1e-3, 1.0, 60.0).holds(1e-4)
    assert Parity(1e-3, 1.0, 60.0, pieces=1e-6).holds(1e-4)
    assert not Parity(1e-3, 1.0, 60.0, pieces=1e-3).holds(1e-4)
    assert not Parity(1e-5, 1.0, 100.0, pieces=1e-3).holds(1e-4)
    assert not Parity(0.5, 1.0, 10.0, pieces=1e-6).holds(1e-4)  # beyond the quantization noise
    assert not Parity(math.nan, 1.0, math.nan, pieces=math.nan).holds(1e-4)
    assert Parity(0.0, 0.0, math.inf).holds(1e-4)
    assert Parity(1e-3, 1.0, 60.0, fusion=1e-6).holds(1e-4)
    assert Parity(1e-3, 1.0, 60.0, pieces=1e-6, fusion=0.0).holds(1e-4)
    assert not Parity(1e-3, 1.0, 10.0, fusion=1e-6).holds(1e-4)
    assert not Parity(1e-6, 1.0, 90.0, fusion=2e-5).holds(1e-4)
    assert not Parity(1e-6, 1.0, 90.0, fusion=math.nan).holds(1e-4)


def test_psnr_and_range_by_hand(exported, monkeypatch):
    path, model = exported("float")
    call = make_calls(batch=1)[0]
    with torch.no_grad():
        expected = model(**call)[0]
    monkeypatch.setattr("ditpress.export.parity.run_session", lambda *_: expected + 0.25)
    parity = compare(onnx_session(path), cases(model, [call], (1,)))
    spread = float(expected.max() - expected.min())
    assert parity.max_abs == pytest.approx(0.25, rel=1e-5)
    assert parity.relative == pytest.approx(0.25 / spread, rel=1e-5)
    assert parity.psnr == pytest.approx(20 * math.log10(spread / 0.25), rel=1e-5)


def test_nodes_carry_the_names_of_their_modules(exported):
    path, model = exported()
    names = [node.name for node in onnx.load(path).graph.node if node.domain == "ditpress"]
    low_bit = {name for name, module in model.named_modules() if type(module).__name__ == "QuantizedLinear"}
    assert set(names) == low_bit
    assert len(names) == len(set(names))
    assert type(make_quantized().get_submodule(names[0])).__name__ == "QuantizedLinear"
