"""Each rewrite on graphs written by hand: where it must happen, near misses, and the numbers it gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
import pytest

from ditpress.export.shorten import shorten

HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[batch, {tokens}, 4] x) => (float[{y}] y) {{{body}}}'
LENGTHS = """
    b = Shape <start = 0, end = 1> (x)
    four = Constant <value = int64[1] {4}> ()
    three = Constant <value = int64[1] {3}> ()
    two = Constant <value = int64[1] {2}> ()
"""
SLICES = """
    s = Sin (x)
    c = Cos (x)
    {joined}
    zero = Constant <value = int64[1] {{0}}> ()
    half = Constant <value = int64[1] {{4}}> ()
    quarter = Constant <value = int64[1] {{2}}> ()
    end = Constant <value = int64[1] {{9223372036854775807}}> ()
    last = Constant <value = int64[1] {{{axis}}}> ()
    first = Slice (w, {start}, end, last)
    second = Slice (w, zero, {start}, last)
    y = Concat <axis = {axis}> ({order})
"""


def slices(joined="w = Concat <axis = -1> (s, c)", axis=-1, start="half", order="first, second"):
    return SLICES.format(joined=joined, axis=axis, start=start, order=order)


CASES = {
    # operators left, in the order of the graph
    "reshape": (
        ["Reshape"],
        LENGTHS + "shape = Concat <axis = 0> (b, four, three, two) y = Reshape (x, shape)",
        "batch, 4, 3, 2",
    ),
    "reshape, batch by way of a number": (
        ["Reshape"],
        LENGTHS
        + """number = Squeeze (b) one = Constant <value_ints = [-1]> () again = Reshape (number, one)
        shape = Concat <axis = 0> (four, again, two, three) y = Reshape (x, shape)""",
        "4, batch, 2, 3",
    ),
    "reshape, two lengths unknown": (
        ["Shape", "Shape", "Concat", "Reshape"],
        LENGTHS
        + """t = Shape <start = 1, end = 2> (x)
        shape = Concat <axis = 0> (b, t, two, two) y = Reshape (x, shape)""",
        "batch, tokens, 2, 2",
    ),
    "einsum": (["Transpose"], 'y = Einsum <equation = "abc->cab"> (x)', "4, batch, 6"),
    "einsum, spaces": (["Transpose"], 'y = Einsum <equation = "a b c -> b a c"> (x)', "6, batch, 4"),
    "einsum that sums": (["Einsum"], 'y = Einsum <equation = "abc->ca"> (x)', "4, batch"),
    "einsum of two": (["Einsum"], 'y = Einsum <equation = "abc,abc->cab"> (x, x)', "4, batch, 6"),
    "einsum without a result": (["Einsum"], 'y = Einsum <equation = "cab"> (x)', "6, 4, batch"),
    "einsum with dots": (["Einsum"], 'y = Einsum <equation = "...c->c..."> (x)', "4, batch, 6"),
    "halves": (["Sin", "Cos", "Concat"], slices(), "batch, 6, 8"),
    "halves in order": (
        ["Sin", "Cos", "Concat", "Slice", "Slice", "Concat"],
        slices(order="second, first"),
        "batch, 6, 8",
    ),
    "half twice": (
        ["Sin", "Cos", "Concat", "Slice", "Concat"],
        slices(order="first, first"),
        "batch, 6, 8",
    ),
    "other pieces": (
        ["Sin", "Cos", "Concat", "Slice", "Slice", "Concat"],
        slices(start="quarter"),
        "batch, 6, 8",
    ),
    "three together": (
        ["Sin", "Cos", "Concat", "Slice", "Slice", "Concat"],
        slices(joined="w = Concat <axis = -1> (s, c, s)"),
        "batch, 6, 12",
    ),
    "cut along another": (
        ["Sin", "Cos", "Concat", "Slice", "Slice", "Concat"],
        slices(axis=1),
        "batch, 6, 8",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shorter_and_the_same(name):
    kinds, body, shape = CASES[name]
    tokens = "tokens" if "tokens" in shape else 6
    proto = onnx.parser.parse_model(HEAD.format(tokens=tokens, y=shape, body=body))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    shorten(model)
    passes.RemoveUnusedNodesPass()(model)
    assert sorted(node.op_type for node in model.graph) == sorted(kinds)
    x = {"x": np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)}
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    (right,), (y,) = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, x) for m in (proto, after)
    )
    np.testing.assert_array_equal(y, right)
