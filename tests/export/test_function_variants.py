"""Every coding, prologue, epilogue and split against float64, and attention against PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_models import LIBRARIES_FUSED
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from ditpress.errors import InputError
from ditpress.export.functions import (
    OPSET,
    Kind,
    Variant,
    attach_functions,
    attention_proto,
    function_proto,
    kind_of,
)
from ditpress.export.functions.kinds import CODEBOOKS, SUFFIXES, TABLES
from ditpress.export.session import onnx_library_path
from ditpress.kernels.activations import ACTIVATIONS, fake_quantize

N = 128
COLUMNS = {"shift": 70, "modulation": 0, "gate": 9}  # in a last dimension of its own, or across two


def packed(codes: np.ndarray, entries: int) -> np.ndarray:
    """Rows of codes as bytes, by the definition: a little-endian stream of bits, or five trits a byte."""
    rows = []
    for row in codes:
        if entries == 3:
            padded = np.pad(row, (0, -len(row) % 5)).reshape(-1, 5)
            rows.append((padded * 3 ** np.arange(5)).sum(1).astype(np.uint8))
        else:
            bits = entries.bit_length() - 1
            stream = ((row[:, None] >> np.arange(bits)) & 1).reshape(-1).astype(np.uint8)
            rows.append(np.packbits(stream, bitorder="little"))
    return np.stack(rows)


def weights(coding, in_features, group, half_scale, rng):
    """Arrays of a node, and the weight they mean in float64."""
    entries, length = CODEBOOKS[coding]
    codes = rng.integers(0, entries, (N, in_features // length), dtype=np.uint8)
    count = 3 if coding == TABLES else 1
    codebook = rng.integers(-128, 128, (count * entries, length)).astype(np.int8)
    scale = rng.uniform(0.001, 0.01, (N, in_features // group))
    scale = scale.astype(np.float16 if half_scale else np.float32)
    arrays = {
        "codes": packed(codes, entries),
        "scale": scale,
        "codebook": codebook.reshape(-1),
        "bias": rng.normal(size=N).astype(np.float32),
    }
    if coding == TABLES:
        arrays["table"] = rng.integers(0, count, N, dtype=np.uint8)
        codes = codes + 16 * arrays["table"].astype(np.int64)[:, None]
    values = codebook[codes].reshape(N, in_features).astype(np.float64)
    return arrays, values * np.repeat(scale.astype(np.float64), group, 1)


def session_of(kind, in_features, group, arrays, library, variant=None, feeds=(), options=None):
    """A model of one node; ``feeds`` are the shapes of the float inputs behind the bias."""
    overload = variant and variant.overload
    variant = variant or Variant(table=True)
    inputs = variant.inputs(kind)
    extra = dict(zip(inputs[len(kind.inputs) :], feeds, strict=True))
    outputs = ["y"] if variant.outputs == 1 else [f"y{i}" for i in range(variant.outputs)]
    attributes = {
        "N": N,
        "K": in_features,
        "group_size": group,
        "fold_scales": 0,
        "prologue": variant.prologue,
        "epsilon": 1e-6,
        "epilogue": variant.epilogue,
    }
    if variant.outputs == 2:
        attributes["splits"] = [64, N - 64]
    if variant.columns:
        attributes["columns"] = [COLUMNS[name] for name in variant.per_sample]
    node = helper.make_node(kind.name, list(inputs), outputs, name="layer", domain="ditpress", **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [
            value("x", TensorProto.FLOAT, ["b", "t", in_features]),
            *(value(name, TensorProto.FLOAT, list(shape)) for name, shape in extra.items()),
        ],
        [value(name, TensorProto.FLOAT, ["b", "t", f"{name}_width"]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return session(graph, library, overload, options)


def session(graph, library, overload=None, options=None):
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ditpress", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    attach_functions(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    if overload is not None:
        assert [proto.graph.node[0].overload, proto.functions[0].overload] == [overload] * 2
    options = options or onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(str(onnx_library_path()))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def rounded(x, activation, group):
    """What activations leave of x, by the definition in PyTorch (float32 scales, float32 products)."""
    return fake_quantize(torch.from_numpy(x), activation, group).double().numpy()


def test_every_activation_format_has_nodes():
    assert set(SUFFIXES) == set(ACTIVATIONS)
    assert len(set(SUFFIXES.values())) == len(SUFFIXES)


@pytest.mark.parametrize("library", LIBRARIES_FUSED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("in_features", "groups", "half_scale"), [(128, 1, False), (132, 3, True)])
@pytest.mark.parametrize("coding", list(CODEBOOKS))
def test_coding_means_its_codebook(coding, in_features, groups, half_scale, activation, library):
    rng = np.random.default_rng(0)
    arrays, weight = weights(coding, in_features, in_features // groups, half_scale, rng)
    kind = kind_of(*CODEBOOKS[coding], activation, coding == TABLES)
    assert kind.name == f"QLinear{coding}{SUFFIXES[activation]}"
    x = rng.normal(size=(2, 3, in_features)).astype(np.float32)
    x[0, 1, : in_features // groups] = 0  # a group, or a row, that rounds to zeros
    (y,) = session_of(kind, in_features, in_features // groups, arrays, library).run(None, {"x": x})
    expected = rounded(x, activation, in_features // groups) @ weight.T + arrays["bias"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("coding", list(CODEBOOKS))
def test_constant_folding_keeps_the_codes_small(coding, tmp_path):
    """What ONNX Runtime holds after loading: no float32 copy of the weights."""
    in_features = 768
    arrays, _ = weights(coding, in_features, 128, True, np.random.default_rng(0))
    for activation in ("int8", "none", "uint4"):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        opened = session_of(Kind(coding, activation), in_features, 128, arrays, False, options=options)
        held = onnx.load(tmp_path / "optimized.onnx").graph.initializer
        # codes, scales in float32, and what depends on neither N nor the group: tables and places in a row
        fixed = 256 * 4 * 8 + in_features // 2 * 8 * 3
        assert sum(len(tensor.raw_data) for tensor in held) < arrays["codes"].nbytes + 4 * N * 6 + fixed
        del opened


@pytest.mark.parametrize("coding", ["2", "T", "V6x2"])
def test_odd_rows(coding):
    """Widths where a row ends inside a byte."""
    rng = np.random.default_rng(0)
    for in_features in (2, 6, 10, 14, 66):
        arrays, weight = weights(coding, in_features, in_features, False, rng)
        x = rng.normal(size=(1, 2, in_features)).astype(np.float32)
        (y,) = session_of(Kind(coding, "none"), in_features, in_features, arrays, False).run(None, {"x": x})
        expected = x.astype(np.float64) @ weight.T + arrays["bias"]
        np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def affine(coding, in_features, rng):
    """Weights that go through the function without a table."""
    arrays, _ = weights(coding, in_features, in_features, False, rng)
    entries = CODEBOOKS[coding][0]
    arrays["codebook"] = np.arange(-entries // 2, entries // 2).astype(np.int8)
    if coding == "8":
        codes = arrays["codes"]
    else:
        codes = np.stack([arrays["codes"] & 15, arrays["codes"] >> 4], -1).reshape(N, in_features)
    values = arrays["codebook"][codes].astype(np.float64)
    return arrays, values * arrays["scale"].astype(np.float64)


PARTS = [
    ("", "gelu_tanh", False, 1),
    ("", "gate_residual", False, 1),
    ("", "gate_residual", True, 1),
    ("", "", False, 2),
    ("layer_norm_modulate", "", False, 1),
    ("layer_norm_modulate", "gelu_tanh", True, 1),
    ("layer_norm_modulate", "gate_residual", False, 1),
    ("layer_norm_modulate", "gate_residual", True, 1),
    ("layer_norm_modulate", "", True, 2),
]


@pytest.mark.parametrize("library", LIBRARIES_FUSED)
@pytest.mark.parametrize("activation", ["int8", "none", "int4"])
@pytest.mark.parametrize(
    ("coding", "table"), [("4", False), ("8", False), ("4", True), ("T", True), ("4M", True)]
)
@pytest.mark.parametrize(("prologue", "epilogue", "columns", "outputs"), PARTS)
def test_parts_around_the_product(prologue, epilogue, columns, outputs, coding, table, activation, library):
    rng = np.random.default_rng(0)
    inner, batch, tokens = 64, 2, 5
    arrays, weight = weights(coding, inner, inner, False, rng) if table else affine(coding, inner, rng)
    variant = Variant(table, prologue, epilogue, columns, outputs)
    feeds = {"x": rng.normal(size=(batch, tokens, inner)).astype(np.float32)}
    shapes = {
        "shift": (batch, 1, inner),
        "modulation": (batch, 1, inner),
        "gate": (batch, 1, N),
        "residual": (batch, tokens, N),
    }
    if columns:
        shapes |= {"shift": (batch, 3, 50), "modulation": (batch, inner + 1), "gate": (batch, 1, N + 9)}
    kind = Kind(coding, activation)
    extra = variant.inputs(kind)[len(kind.inputs) :]
    for name in extra:
        feeds[name] = rng.normal(size=shapes[name]).astype(np.float32)
    opened = session_of(kind, inner, inner, arrays, library, variant, [shapes[name] for name in extra])

    def row(name):
        array = torch.from_numpy(feeds[name]).flatten(1)
        first, width = COLUMNS[name] if columns else 0, N if name == "gate" else inner
        return array[:, None, first : first + width]

    h = torch.from_numpy(feeds["x"])
    if prologue:
        h = F.layer_norm(h, (inner,), eps=1e-6) * (1 + row("modulation")) + row("shift")
    expected = torch.from_numpy(rounded(h.numpy(), activation, inner) @ weight.T + arrays["bias"])
    if epilogue == "gelu_tanh":
        expected = F.gelu(expected, approximate="tanh")
    elif epilogue == "gate_residual":
        expected = row("gate").double() * expected + torch.from_numpy(feeds["residual"]).double()
    actual = opened.run(None, feeds)
    pieces = [expected] if outputs == 1 else [expected[..., :64], expected[..., 64:]]
    # A last bit of the layer norm may move an activation to the next step of its format.
    steps = {"none": 3e-6, "int8": 0.02, "int4": 0.3}
    limit = steps[activation] if prologue else 3e-6
    if epilogue == "gelu_tanh":
        limit = max(limit, 1.5e-5)  # what the kernel's GELU is allowed
    for y, piece in zip(actual, pieces, strict=True):
        assert y.shape == tuple(piece.shape)
        assert np.abs(y - piece.numpy()).max() <= limit * float(expected.abs().max())
        mean = 1e-3 if activation != "int4" else 1e-2
        assert np.abs(y - piece.numpy()).mean() <= mean * float(expected.abs().max())


@pytest.mark.parametrize("library", LIBRARIES_FUSED)
@pytest.mark.parametrize("mask", [None, (2, 1, 1, 7), (1, 3, 5, 7), (2, 3, 1, 7)])
def test_attention_is_scaled_dot_product_attention(mask, library):
    torch.manual_seed(0)
    batch, heads, length, queries, keys = 2, 3, 8, 5, 7
    q = torch.randn(batch, queries, heads * length)
    k, v = torch.randn(2, batch, keys, heads * length)
    feeds = {"q": q.numpy(), "k": k.numpy(), "v": v.numpy()}
    if mask is not None:
        feeds["mask"] = torch.randn(mask).numpy()
    node = helper.make_node(
        "Attention", list(feeds), ["y"], domain="ditpress", num_heads=heads, scale=0.3, bf16=0
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value(name, TensorProto.FLOAT, list(array.shape)) for name, array in feeds.items()],
        [value("y", TensorProto.FLOAT, list(q.shape))],
    )
    (y,) = session(graph, library).run(None, feeds)
    split = [t.double().unflatten(2, (heads, length)).transpose(1, 2) for t in (q, k, v)]
    given = None if mask is None else torch.from_numpy(feeds["mask"]).double()
    expected = F.scaled_dot_product_attention(*split, attn_mask=given, scale=0.3).transpose(1, 2).flatten(2)
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=2e-6)


def test_unknown_functions():
    with pytest.raises(InputError, match=r"codebook \[8, 1\]"):
        kind_of(8, 1, "int8")
    with pytest.raises(InputError, match=r"codebook \[256, 1\]"):
        kind_of(256, 1, "int8", tables=True)
    with pytest.raises(InputError, match="with a table"):
        function_proto("QLinear2")
    with pytest.raises(InputError, match="causal"):
        attention_proto("causal")
