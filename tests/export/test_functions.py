"""Model-local functions and our kernels against the definition of the op in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ditpress.errors import InputError
from ditpress.export.functions import OPSET, attach_functions, block_size, function_proto
from ditpress.export.session import onnx_library_path
from ditpress.kernels.formats import get_format
from ditpress.kernels.packing import pack

needs_library = pytest.mark.skipif(onnx_library_path() is None, reason="C++ kernels not built")


def by_definition(x, codes, scale, entries, bias, int8):
    """y = bias + a Wᵀ, W = scale * codebook[code], a the per-token int8 rounding of x or x itself."""
    weight = entries[codes].astype(np.float64) * np.repeat(
        scale.astype(np.float64), codes.shape[1] // scale.shape[1], 1
    )
    if not int8:
        return x.astype(np.float64) @ weight.T + bias
    amax = np.abs(x).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    q = np.clip(np.rint(x * inverse), -127, 127).astype(np.float64)
    return q @ weight.T * (amax.astype(np.float64) / 127) + bias


def model_of(kind, in_features, group, arrays, rank):
    """One node, all weights initialisers."""
    names = ("codes", "scale", "codebook", "bias")
    node = helper.make_node(
        kind,
        ["x", *names],
        ["y"],
        name="layer",
        domain="ditpress",
        N=arrays["codes"].shape[0],
        K=in_features,
        group_size=group,
        fold_scales=0,
        prologue="",
        epsilon=0.0,
        epilogue="",
    )
    lead = [f"d{i}" for i in range(rank - 1)]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*lead, in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*lead, arrays["codes"].shape[0]])],
        [numpy_helper.from_array(arrays[name], name) for name in names],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ditpress", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    attach_functions(model)
    return ir.to_proto(model)


def case(format, in_features, group, half_scale, seed=0):
    rng = np.random.default_rng(seed)
    fmt = get_format(format)
    codes = rng.integers(0, fmt.entries, (24, in_features), dtype=np.uint8)
    arrays = {
        "codes": pack(torch.from_numpy(codes), fmt.entries).numpy(),
        "scale": rng.uniform(0.001, 0.01, (24, in_features // group)).astype(
            np.float16 if half_scale else np.float32
        ),
        "codebook": np.array(fmt.codebook, np.int8).reshape(-1),
        "bias": rng.normal(size=24).astype(np.float32),
    }
    return fmt, codes, arrays, rng


CASES = [
    # format, K, group, float16 scales, overload
    ("int4", 128, 64, True, ""),
    ("int4", 128, 128, False, ""),
    ("int4", 96, 48, True, ""),  # three blocks of 16 in each group
    ("int4", 72, 72, False, "table"),  # no block of MatMulNBits divides 72
    ("nf4", 128, 32, True, "table"),
    ("fp4-e2m1", 64, 64, False, "table"),
    ("int8", 72, 72, False, ""),
    ("int8", 128, 32, True, "table"),
]


@pytest.mark.parametrize("library", [False, pytest.param(True, marks=needs_library)])
@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize(("format", "in_features", "group", "half_scale", "overload"), CASES)
def test_node_computes_the_definition(format, in_features, group, half_scale, overload, int8, library):
    fmt, codes, arrays, rng = case(format, in_features, group, half_scale)
    kind = f"QLinear{fmt.bits}{'A8' if int8 else ''}"
    options = onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(str(onnx_library_path()))
    for shape in ((5,), (2, 3), (1,)):
        model = model_of(kind, in_features, group, arrays, len(shape) + 1)
        assert model.graph.node[0].overload == overload
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        x = rng.normal(size=(*shape, in_features)).astype(np.float32)
        x[..., 0, :] = 0  # a row of zeros quantizes to zeros, not to NaN
        (y,) = session.run(None, {"x": x})
        expected = by_definition(
            x, codes, arrays["scale"], np.array(fmt.codebook).reshape(-1), arrays["bias"], int8
        )
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        np.testing.assert_array_equal(y[..., 0, :], np.broadcast_to(arrays["bias"], y[..., 0, :].shape))


@needs_library
@pytest.mark.parametrize("format", ["int4", "nf4", "int8"])
def test_the_kernel_is_taken_where_the_library_is_registered(format, tmp_path):
    """Whatever the overload: ONNX Runtime writes the graph it really runs to a file."""
    fmt, _, arrays, _ = case(format, 64, 64, False)
    model = model_of(f"QLinear{fmt.bits}A8", 64, 64, arrays, 2)
    operators = {}
    for library in (True, False):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{library}.onnx")
        if library:
            options.register_custom_ops_library(str(onnx_library_path()))
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        graph = onnx.load(tmp_path / f"{library}.onnx").graph
        operators[library] = [node.op_type for node in graph.node if node.domain == "ditpress"]
    assert operators == {True: [f"QLinear{fmt.bits}A8"], False: []}


@pytest.mark.parametrize(("format", "overload"), [("int4", ""), ("nf4", "table"), ("int8", "")])
def test_checker_accepts_the_model(format, overload):
    fmt, _, arrays, _ = case(format, 64, 64, False)
    model = model_of(f"QLinear{fmt.bits}A8", 64, 64, arrays, 2)
    assert [function.overload for function in model.functions] == [overload]
    onnx.checker.check_model(model)


def test_constant_folding_keeps_the_codes_small(tmp_path):
    """What ONNX Runtime holds after loading: no float32 copy of the weights."""
    for format, group in (("int4", 64), ("nf4", 64), ("int8", 256)):
        fmt, _, arrays, _ = case(format, 256, group, False)
        for kind in (f"QLinear{fmt.bits}A8", f"QLinear{fmt.bits}"):
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
            model = model_of(kind, 256, group, arrays, 2)
            onnxruntime.InferenceSession(model.SerializeToString(), options)
            held = onnx.load(tmp_path / "optimized.onnx").graph.initializer
            codes = arrays["codes"].nbytes
            # codes (possibly reshaped), scales in float32, and tables of a fixed size
            assert sum(len(tensor.raw_data) for tensor in held) < codes + 4 * 24 * 256 // 16 + 4096


def test_block_size():
    assert [block_size(group) for group in (16, 48, 64, 1152, 1024, 8, 72)] == [
        16,
        16,
        64,
        128,
        256,
        None,
        None,
    ]


def test_unknown_function():
    with pytest.raises(InputError, match="QLinear3"):
        function_proto("QLinear3")
