"""The meaning of each ``ditpress`` ONNX node, written in standard and contrib operators.

A file holds, beside the nodes ``QLinear4A8``, ``QLinear8A8``, ``QLinear4`` and ``QLinear8``, one model-local
function per node kind. ONNX Runtime takes our kernel where the library is registered and inlines the
function where it is not, so one file runs on a plain installation too, with the same numbers up to the
rounding of float32 sums: the per-token quantization is written out exactly, integers travel in float32 or
through ``MatMulInteger``, and the codes stay packed.

Two bodies per node kind; ONNX calls the choice between them an *overload*:

``""``
    Affine codes (value = code - 2**(bits-1)), through ``MatMulNBits`` (4 bit, float32 arithmetic),
    ``MatMulInteger`` (8 bit, exact) or ``DequantizeLinear`` (8 bit, weight-only).
``"table"``
    Any codebook, any group size: codes are looked up at every run. Slower, and just as small in memory.

Constant folding shapes the bodies. Written in plain arithmetic, ONNX Runtime unpacks every weight to float32
while it loads, which costs eight times the memory of 4-bit codes. It never folds ``DequantizeLinear``, so
that operator stands between the codes and everything that would make them larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from ditpress.errors import InputError

DOMAIN = "ditpress"
OPSET = 20
CONTRIB_DOMAIN = "com.microsoft"
TABLE = "table"
MIN_BLOCK, MAX_BLOCK = 16, 256  # block sizes MatMulNBits takes: powers of two in this range


@dataclass(frozen=True)
class Kind:
    """One node kind: ``bits`` per code, and whether activations are rounded to int8 per token."""

    bits: int
    int8_activations: bool

    @property
    def name(self) -> str:
        return f"QLinear{self.bits}{'A8' if self.int8_activations else ''}"


KINDS = {kind.name: kind for kind in (Kind(4, True), Kind(8, True), Kind(4, False), Kind(8, False))}

# q = clamp(rint(x * (127 / amax)), -127, 127) per token. 1e-36 keeps 127 / amax finite: a row of zeros gives
# q = 0 and step = 0, so y = bias.
_QUANTIZE = """
    magnitude = Abs (x)
    amax = ReduceMax <keepdims = 1> (magnitude, minus_one)
    top = Constant <value_float = 127.0> ()
    bottom = Constant <value_float = -127.0> ()
    smallest = Constant <value_float = 1e-36> ()
    safe = Max (amax, smallest)
    inverse = Div (top, safe)
    scaled = Mul (x, inverse)
    rounded = Round (scaled)
    a = Clip (rounded, bottom, top)
    step = Div (amax, top)
"""
_KEEP = """
    a = Identity (x)
"""
_STEP = """
    stepped = Mul (f, step)
    y = Add (stepped, bias)
"""
_NO_STEP = """
    y = Add (f, bias)
"""

_LAST = """
    minus_one = Constant <value_ints = [-1]> ()
"""


def _length(name: str, attribute: str) -> str:
    """An attribute of the node as a vector of one element; a constant once the function is inlined."""
    return f"""
    {name}_scalar = Constant <value_int: int = @{attribute}> ()
    {name} = Reshape ({name}_scalar, minus_one)
"""


# MatMulNBits wants codes [N, K / block, block / 2] and one float32 scale per block; its default zero point
# for 4 bits is 8, ours too. A group may hold several blocks (`block_size` divides `group_size`).
_NBITS_4 = (
    _length("n", "N")
    + _length("g", "group_size")
    + _length("block", "block_size")
    + """
    two = Constant <value_ints = [2]> ()
    block_bytes = Div (block, two)
    codes_shape = Concat <axis = 0> (n, minus_one, block_bytes)
    blocked = Reshape (codes, codes_shape)
    repeats = Div (g, block)
    one = Constant <value_ints = [1]> ()
    repeated_shape = Concat <axis = 0> (one, one, repeats)
    scale_float = Cast <to = 1> (scale)
    scale_column = Unsqueeze (scale_float, minus_one)
    scale_repeated = Expand (scale_column, repeated_shape)
    scale_flat = Reshape (scale_repeated, minus_one)
    f = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits = 4, block_size: int = @block_size,
                                   accuracy_level = 0> (a, blocked, scale_flat)
"""
)

# Exact: uint8 x uint8 in int32. Both sides carry the offset 128, so neither needs a signed kernel.
_INTEGER_8 = """
    zero_point = Constant <value = uint8 {128}> ()
    offset = Constant <value_float = 128.0> ()
    shifted = Add (a, offset)
    a_byte = Cast <to = 2> (shifted)
    codes_t = Transpose <perm = [1, 0]> (codes)
    sums = MatMulInteger (a_byte, codes_t, zero_point, zero_point)
    sums_float = Cast <to = 1> (sums)
    scale_float = Cast <to = 1> (scale)
    scale_row = Reshape (scale_float, minus_one)
    f = Mul (sums_float, scale_row)
"""

# Gemm rather than Transpose and MatMul: ONNX Runtime turns the latter into a kernel with int8 activations.
_FLATTEN = (
    _length("n", "N")
    + _length("k", "K")
    + """
    flat_shape = Concat <axis = 0> (minus_one, k)
    a_flat = Reshape (a, flat_shape)
    x_shape = Shape <start = 0, end = -1> (x)
    y_shape = Concat <axis = 0> (x_shape, n)
"""
)
_DEQUANTIZE_8 = (
    _FLATTEN
    + """
    zero_point = Constant <value = uint8 {128}> ()
    unit = Constant <value_float = 1.0> ()
    values = DequantizeLinear (codes, unit, zero_point)
    f_flat = Gemm <transB = 1> (a_flat, values)
    scale_float = Cast <to = 1> (scale)
    scale_row = Reshape (scale_float, minus_one)
    f_scaled = Mul (f_flat, scale_row)
    f = Reshape (f_scaled, y_shape)
"""
)

# What a byte of codes means: one entry of the codebook (8 bit) or two, the low nibble first (4 bit).
_BYTE_TABLE_8 = """
    entries_float = Cast <to = 1> (codebook)
    byte_table = Unsqueeze (entries_float, minus_one)
"""
_BYTE_TABLE_4 = """
    entries_float = Cast <to = 1> (codebook)
    first = Constant <value_int = 0> ()
    end = Constant <value_int = 256> ()
    stride = Constant <value_int = 1> ()
    sixteen = Constant <value_int = 16> ()
    bytes = Range (first, end, stride)
    low = Mod (bytes, sixteen)
    high = Div (bytes, sixteen)
    low_value = Gather (entries_float, low)
    high_value = Gather (entries_float, high)
    low_column = Unsqueeze (low_value, minus_one)
    high_column = Unsqueeze (high_value, minus_one)
    byte_table = Concat <axis = 1> (low_column, high_column)
"""
_LOOK_UP = (
    _FLATTEN
    + _length("g", "group_size")
    + """
    zero_point = Constant <value = uint8 {0}> ()
    unit = Constant <value_float = 1.0> ()
    codes_float = DequantizeLinear (codes, unit, zero_point)
    index = Cast <to = 6> (codes_float)
    values = Gather <axis = 0> (byte_table, index)
    grouped_shape = Concat <axis = 0> (n, minus_one, g)
    grouped = Reshape (values, grouped_shape)
    scale_float = Cast <to = 1> (scale)
    scale_column = Unsqueeze (scale_float, minus_one)
    grouped_scaled = Mul (grouped, scale_column)
    weight_shape = Concat <axis = 0> (n, k)
    weight = Reshape (grouped_scaled, weight_shape)
    f_flat = Gemm <transB = 1> (a_flat, weight)
    f = Reshape (f_flat, y_shape)
"""
)

_BODIES = {
    (4, True, ""): _NBITS_4,
    (4, False, ""): _NBITS_4,
    (8, True, ""): _INTEGER_8,
    (8, False, ""): _DEQUANTIZE_8,
    (4, True, TABLE): _BYTE_TABLE_4 + _LOOK_UP,
    (4, False, TABLE): _BYTE_TABLE_4 + _LOOK_UP,
    (8, True, TABLE): _BYTE_TABLE_8 + _LOOK_UP,
    (8, False, TABLE): _BYTE_TABLE_8 + _LOOK_UP,
}


def function_proto(name: str, overload: str = "") -> onnx.FunctionProto:
    """The model-local function of node kind ``name``.

    Inputs: x float32 ``[..., K]``; codes uint8 ``[N, K * bits / 8]``, row-major, the element of even index
    in the low nibble; scale float16 or float32 ``[N, K / group_size]``; codebook int8 ``[2**bits]``; bias
    float32 ``[N]``. Output: float32 ``[..., N]``. Attributes: ``N``, ``K``, ``group_size`` and, for affine
    4-bit codes, ``block_size``.

    Raises:
        InputError: no such node kind or overload.
    """
    kind = KINDS.get(name)
    if kind is None or overload not in ("", TABLE):
        raise InputError(
            f"no ONNX function {name!r} with overload {overload!r}: expected one of {', '.join(KINDS)}"
        )
    blocked = kind.bits == 4 and overload == ""
    attributes = "N, K, group_size, block_size" if blocked else "N, K, group_size"
    contrib = f', "{CONTRIB_DOMAIN}": 1' if blocked else ""
    body = (
        _LAST
        + (_QUANTIZE if kind.int8_activations else _KEEP)
        + _BODIES[kind.bits, kind.int8_activations, overload]
        + (_STEP if kind.int8_activations else _NO_STEP)
    )
    text = (
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}{contrib}]>\n'
        f"{name} <{attributes}> (x, codes, scale, codebook, bias) => (y)\n{{{body}}}"
    )
    function = onnx.parser.parse_function(text)
    function.overload = overload
    return function


def block_size(group_size: int) -> int | None:
    """The largest block of MatMulNBits that divides ``group_size``; None where there is none."""
    block = min(group_size & -group_size, MAX_BLOCK)
    return block if block >= MIN_BLOCK else None


def attach_functions(model: ir.Model) -> None:
    """Give every ``ditpress`` node its overload and block size, and ``model`` the functions they use.

    The codebook of each node must be a constant: which body a node needs depends on its values.
    """
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        group, inner = node.attributes["group_size"].as_int(), node.attributes["K"].as_int()
        kind = KINDS[node.op_type]
        codebook = node.inputs[3].const_value if node.inputs[3] is not None else None
        if codebook is None:
            raise InputError(f"ONNX node {node.name!r} has no constant codebook: the table must be a buffer")
        entries = codebook.numpy().reshape(-1).astype(np.int64)
        affine = np.array_equal(entries, np.arange(2**kind.bits) - 2 ** (kind.bits - 1))
        block = block_size(group)
        direct = affine and (block is not None if kind.bits == 4 else group == inner)
        if direct and kind.bits == 4:
            node.attributes["block_size"] = ir.AttrInt64("block_size", block)
            model.opset_imports[CONTRIB_DOMAIN] = 1
        node.overload = "" if direct else TABLE
        if node.op_identifier() not in model.functions:
            model.functions[node.op_identifier()] = ir.from_proto(function_proto(node.op_type, node.overload))
            model.opset_imports[DOMAIN] = 1


def name_nodes(model: ir.Model, prefix: str) -> None:
    """Name every ``ditpress`` node after its module, known from its codes ``<prefix>.<module>.codes``."""
    for node in model.graph:
        codes = node.inputs[1] if node.domain == DOMAIN else None
        if codes is not None and codes.name is not None:
            node.name = codes.name.removeprefix(f"{prefix}.").removesuffix(".codes")
