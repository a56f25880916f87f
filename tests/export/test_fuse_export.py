"""Fused exports: what is in them, by family, and what they compute."""

from __future__ import annotations

import re
import warnings

import onnx
import pytest
import torch
from export_models import LIBRARIES_FUSED, make_calls, make_dit, quantize
from test_families import flux, pixart, sd3

from ditpress.errors import InputError, StageError
from ditpress.export import fuse
from ditpress.export import onnx as exporter
from ditpress.export import session as sessions
from ditpress.export.inputs import Signature
from ditpress.export.onnx import build_model, export_transformer
from ditpress.export.openloop import rounding_nodes
from ditpress.export.parity import cases, compare
from ditpress.export.session import onnx_session
from ditpress.load.widths import resize

LAYERS = 3


@pytest.fixture(params=LIBRARIES_FUSED)
def library(request, monkeypatch):
    """With our kernels where they know fused nodes, and as on an installation without them."""
    if not request.param:
        monkeypatch.setattr(sessions, "library_path", lambda: None)
        warnings.filterwarnings("ignore", message="ditpress was installed without")
    return request.param


def make_fused(format="int4", group=32, activation="int8"):
    return quantize(make_dit(LAYERS), format, group, activation)


def nodes_of(path):
    return [node for node in onnx.load(path, load_external_data=False).graph.node if node.domain]


def counts(nodes):
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    return {
        "norm": sum(a.get("prologue") == b"layer_norm_modulate" for a in attributes),
        "gelu": sum(a.get("epilogue") == b"gelu_tanh" for a in attributes),
        "gate": sum(a.get("epilogue") == b"gate_residual" for a in attributes),
        "merge": sum("splits" in a for a in attributes),
        "attention": sum(node.op_type == "Attention" for node in nodes),
        "columns": sum("columns" in a for a in attributes),
    }


@pytest.mark.parametrize(
    ("format", "group", "activation"),
    [
        ("int4", 32, "int8"),
        ("int8", None, "int8"),
        ("nf4", 32, "int8"),
        ("int4", 32, "none"),
        ("fp4", 32, "fp8-e4m3"),
        ("fp4", 32, "fp4-e2m1"),
    ],
)
def test_dit_is_fused(format, group, activation, library, tmp_path):
    model, calls = make_fused(format, group, activation), make_calls(3)
    path, parity = export_transformer(model, tmp_path / "transformer", calls)
    assert counts(nodes_of(path)) == {
        "norm": 2 * LAYERS,  # of q, k and v in one node, and of the MLP
        "gelu": LAYERS,
        "gate": 2 * LAYERS,
        "merge": LAYERS,
        "attention": LAYERS,
        "columns": 4 * LAYERS,
    }
    assert parity.fusion is not None
    assert parity.fusion <= 1e-5
    assert parity.psnr >= 30
    held = compare(onnx_session(path, library=library), cases(model, calls, (1, 2, 5)))
    assert held.psnr >= 30
    plain = [node for node in onnx.load(path).graph.node if not node.domain]
    gone = ("Softmax", "Gelu", "Shape", "Einsum", "Slice")
    assert not [node.op_type for node in plain if node.op_type in gone]
    # patches to tokens and back; the modulation of the last norm, whose layer is not quantized
    assert sum(node.op_type == "Transpose" for node in plain) == 2
    assert sum(node.op_type == "Split" for node in plain) == 1


def test_every_node_carries_its_attributes(tmp_path, library):
    path, _ = export_transformer(make_fused(), tmp_path / "transformer", make_calls())
    onnx.checker.check_model(str(path))
    always = {"N", "K", "group_size", "fold_scales", "prologue", "epsilon", "epilogue"}
    for node in nodes_of(path):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Attention":
            assert attributes == {"num_heads": 2, "scale": pytest.approx(32**-0.5), "bf16": 1}
            continue
        assert always <= set(attributes)
        wanted = 5 + 2 * (attributes["prologue"] != b"") + 2 * (attributes["epilogue"] == b"gate_residual")
        assert len(node.input) == wanted
        rows = 2 * (attributes["prologue"] != b"") + (attributes["epilogue"] == b"gate_residual")
        assert len(attributes.get("columns", [])) == rows
        assert sum(attributes.get("splits", [attributes["N"]])) == attributes["N"]
        assert len(node.output) == len(attributes.get("splits", "y"))
    # the epsilons of DiT's two norms
    epsilons = {node.name: a.f for node in nodes_of(path) for a in node.attribute if a.name == "epsilon"}
    assert epsilons["transformer_blocks.1.attn1.to_q+to_k+to_v"] == pytest.approx(1e-6)
    assert epsilons["transformer_blocks.1.ff.net.0.proj"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # 36 channels a head: q, k and v are no multiples of 64
        (pixart, {"norm": 2, "gelu": 1, "gate": 2, "merge": 0, "attention": 2, "columns": 6}),
        # two streams in two blocks, the last of which ends without the text
        (sd3, {"norm": 7, "gelu": 3, "gate": 6, "merge": 4, "attention": 2, "columns": 13}),
        # two streams, then one; its MLP shares the norm with q, k and v
        (flux, {"norm": 5, "gelu": 3, "gate": 5, "merge": 3, "attention": 2, "columns": 11}),
    ],
)
def test_family_is_fused(family, expected, library, tmp_path, monkeypatch):
    fired = {}
    apply = exporter.apply_rules
    monkeypatch.setattr(exporter, "apply_rules", lambda *args: fired.update(apply(*args)) or fired)
    torch.manual_seed(0)
    model, call = family()
    quantize(model.eval().requires_grad_(False), "int8", None, "int8")
    path, parity = export_transformer(model, tmp_path / "transformer", [call])
    assert fired == expected
    assert counts(nodes_of(path)) | {"norm": expected["norm"]} == expected
    assert parity.fusion <= 1e-6
    assert parity.psnr >= 30


def test_a_stream_narrower_than_attention_is_fused_as_any(tmp_path):
    model = make_dit(1)
    resize(model, {"pos_embed": {"residual": 32}})
    path, parity = export_transformer(
        quantize(model, "int8", None, "int8"), tmp_path / "transformer", make_calls()
    )
    assert counts(nodes_of(path)) == {
        "norm": 2,
        "gelu": 1,
        "gate": 2,
        "merge": 1,
        "attention": 1,
        "columns": 4,
    }
    assert parity.fusion <= 1e-5
    assert parity.psnr >= 30


def test_merged_weights_are_the_parts_one_below_the_other(tmp_path, library):
    model = make_fused()
    path, _ = export_transformer(model, tmp_path / "transformer", make_calls(), fuse=["merge"])
    held = {
        tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in onnx.load(path).graph.initializer
    }
    attention = model.transformer_blocks[1].attn1
    for role in ("codes", "scale", "bias"):
        parts = [getattr(getattr(attention, name), role) for name in ("to_q", "to_k", "to_v")]
        stored = torch.from_numpy(held[f"transformer_blocks.1.attn1.to_q+to_k+to_v.{role}"])
        assert torch.equal(stored, torch.cat(parts))
    assert not [name for name in held if re.search(r"attn1\.to_[qkv]\.", name)]


def test_merging_holds_no_second_copy_of_the_weights():
    model, call = make_fused(), make_calls()[0]
    graph = build_model(model, Signature.of(call), call)
    fuse.apply_rules(graph, ["merge"])
    lazy = [v for v in graph.graph.initializers.values() if isinstance(v.const_value, exporter.ir.LazyTensor)]
    assert len(lazy) == 3 * LAYERS
    assert not [v for v in lazy if v.const_value.cache]
    assert len(rounding_nodes(graph)) == 4 * LAYERS


def test_external_data(tmp_path, library):
    model, calls = make_fused(), make_calls()
    path, _ = export_transformer(model, tmp_path / "transformer", calls, external_data_bytes=1000)
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == ["config.json", "model.onnx", "model.onnx.data"]
    assert compare(onnx_session(path, library=library), cases(model, calls)).psnr >= 30


def test_what_is_never_fused(tmp_path, library):
    """Other targets, float models, and what the caller declines."""
    model, calls = make_fused(), make_calls()
    for number, (transformer, options) in enumerate(
        [(make_dit(), {}), (model, {"target": "portable"}), (model, {"fuse": False}), (model, {"fuse": ()})]
    ):
        path, parity = export_transformer(transformer, tmp_path / str(number), calls, **options)
        assert parity.fusion is None
        assert set(counts(nodes_of(path)).values()) == {0}


def test_unknown_rule(tmp_path):
    with pytest.raises(InputError, match="unknown fusion 'gates'"):
        export_transformer(make_dit(), tmp_path / "a", make_calls(), fuse=["gates"])
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_rule_is_seen(tmp_path, monkeypatch, library):
    def wrong(graph):
        fired = fuse.gelu.fuse_gelu(graph)
        for node in rounding_nodes(exporter.ir.Model(graph, ir_version=10)):
            if node.attributes["epilogue"].as_string() == "gelu_tanh":
                node.attributes["epilogue"] = exporter.ir.AttrString("epilogue", "")
        return fired

    monkeypatch.setitem(fuse.RULES, "gelu", wrong)
    with pytest.raises(StageError, match=r"fused against unfused \d"):
        export_transformer(make_fused(), tmp_path / "transformer", make_calls())
    assert list(tmp_path.iterdir()) == []
