"""Texts of the functions, in ONNX's own syntax: a prologue, a product, an epilogue, splits.

Each part reads and writes fixed names: ``shift_row``, ``modulation_row``, ``gate_row`` are made of the inputs
of these names, the prologue makes ``h`` of ``x``, the quantizer ``a`` (and ``step``) of ``h``, the product
``f`` of ``a`` and the weights, the bias ``z`` of ``f``, the epilogue ``y`` of ``z``.

Constant folding shapes the products. Written in plain arithmetic, ONNX Runtime unpacks every weight to
float32 while it loads, which costs eight times the memory of 4-bit codes. It never folds
``DequantizeLinear``, so that operator stands between the codes and everything that would make them larger.
"""

from __future__ import annotations

from ditpress.export.functions.kinds import GATE_RESIDUAL, GELU_TANH, LAYER_NORM_MODULATE, Kind, Variant


def _length(name: str, attribute: str) -> str:
    """An attribute of the node as a vector of one element; a constant once the function is inlined."""
    return f"""
    {name}_scalar = Constant <value_int: int = @{attribute}> ()
    {name} = Reshape ({name}_scalar, minus_one)
"""


_LENGTHS = (
    """
    minus_one = Constant <value_ints = [-1]> ()
"""
    + _length("n", "N")
    + _length("k", "K")
    + _length("g", "group_size")
)

_ROW = """
    {name}_row = Identity ({name})
"""
# Columns of whatever follows the samples.
_WIDE = """
    wide_shape = Constant <value_ints = [0, -1]> ()
    wide_axis = Constant <value_ints = [1]> ()
    first_columns = Constant <value_ints: ints = @columns> ()
"""
_ROW_OF_WIDE = """
    {name}_place = Constant <value_ints = [{place}]> ()
    {name}_first = Gather (first_columns, {name}_place)
    {name}_end = Add ({name}_first, {width})
    {name}_wide = Reshape ({name}, wide_shape)
    {name}_cut = Slice ({name}_wide, {name}_first, {name}_end, wide_axis)
    {name}_row = Unsqueeze ({name}_cut, wide_axis)
"""

_PROLOGUES = {
    "": """
    h = Identity (x)
""",
    LAYER_NORM_MODULATE: """
    norm_weight = ConstantOfShape <value = float[1] {1.0}> (k)
    normalized = LayerNormalization <axis = -1, epsilon: float = @epsilon> (x, norm_weight)
    norm_one = Constant <value_float = 1.0> ()
    factor = Add (modulation_row, norm_one)
    modulated = Mul (normalized, factor)
    h = Add (modulated, shift_row)
""",
}

_EPILOGUES = {
    "": """
    y = Identity (z)
""",
    GELU_TANH: """
    y = Gelu <approximate = "tanh"> (z)
""",
    GATE_RESIDUAL: """
    gated = Mul (gate_row, z)
    y = Add (gated, residual)
""",
}

_SPLIT = """
    columns = Constant <value_ints: ints = @splits> ()
    {outputs} = Split <axis = -1> (y, columns)
"""

# q = clamp(rint(h * (127 / amax)), -127, 127) per token. 1e-36 keeps 127 / amax finite: a row of zeros gives
# q = 0 and step = 0, so z = bias.
_QUANTIZE = """
    magnitude = Abs (h)
    amax = ReduceMax <keepdims = 1> (magnitude, minus_one)
    top = Constant <value_float = 127.0> ()
    bottom = Constant <value_float = -127.0> ()
    smallest = Constant <value_float = 1e-36> ()
    safe = Max (amax, smallest)
    inverse = Div (top, safe)
    scaled = Mul (h, inverse)
    rounded = Round (scaled)
    a = Clip (rounded, bottom, top)
    step = Div (amax, top)
"""
_KEEP = """
    a = Identity (h)
"""
# The same for every group of `group_size` values. Whole numbers times scales go into the product in float32.
_GROUPED = """
    row_lead = Shape <start = 0, end = -1> (h)
    group_count = Div (k, g)
    groups_shape = Concat <axis = 0> (row_lead, group_count, g)
    h_grouped = Reshape (h, groups_shape)
    {positive}
    magnitude = Abs (h_positive)
    amax = ReduceMax <keepdims = 1> (magnitude, minus_one)
    top = Constant <value_float = {levels}> ()
    bottom = Constant <value_float = -{levels}> ()
    smallest = Constant <value_float = 1e-36> ()
    safe = Max (amax, smallest)
    inverse = Div (top, safe)
    scaled = Mul (h_positive, inverse)
    {rounded}
    whole = Clip (rounded, bottom, top)
    group_step = Div (amax, top)
    a_grouped = Mul (whole, group_step)
    h_shape = Shape (h)
    a = Reshape (a_grouped, h_shape)
"""
_SIGNED, _POSITIVE = "h_positive = Identity (h_grouped)", "h_positive = Relu (h_grouped)"
_ROUND = "rounded = Round (scaled)"
# Steps of 1 up to 4, of 2 up to 8, then of 4: E2M1 in half units.
_ROUND_E2M1 = """
    size = Abs (scaled)
    fours = Constant <value_float = 4.0> ()
    halves = Constant <value_float = 2.0> ()
    eights = Constant <value_float = 8.0> ()
    ones = Round (scaled)
    scaled_half = Div (scaled, halves)
    half_rounded = Round (scaled_half)
    twos = Mul (half_rounded, halves)
    scaled_fourth = Div (scaled, fours)
    fourth_rounded = Round (scaled_fourth)
    large = Mul (fourth_rounded, fours)
    below_eight = Less (size, eights)
    middle_or_large = Where (below_eight, twos, large)
    below_four = Less (size, fours)
    rounded = Where (below_four, ones, middle_or_large)
"""
# ONNX's float8e4m3fn (17) rounds to the nearest, the even one of two, and saturates. 1e-35 keeps 448 / amax
# finite.
_E4M3 = """
    magnitude = Abs (h)
    amax = ReduceMax <keepdims = 1> (magnitude, minus_one)
    top = Constant <value_float = 448.0> ()
    smallest = Constant <value_float = 1e-35> ()
    safe = Max (amax, smallest)
    inverse = Div (top, safe)
    scaled = Mul (h, inverse)
    byte_float = Cast <to = 17> (scaled)
    rounded = Cast <to = 1> (byte_float)
    row_step = Div (amax, top)
    a = Mul (rounded, row_step)
"""
_ROUNDINGS = {
    "none": _KEEP,
    "int8": _QUANTIZE,
    "int4": _GROUPED.format(levels="7.0", positive=_SIGNED, rounded=_ROUND),
    "uint4": _GROUPED.format(levels="15.0", positive=_POSITIVE, rounded=_ROUND),
    "fp4-e2m1": _GROUPED.format(levels="12.0", positive=_SIGNED, rounded=_ROUND_E2M1),
    "fp8-e4m3": _E4M3,
}
_STEP = """
    stepped = Mul (f, step)
    z = Add (stepped, bias)
"""
_NO_STEP = """
    z = Add (f, bias)
"""

# MatMulNBits wants codes [N, K / block, block / 2] and one float32 scale per block; its default zero point
# for 4 bits is 8, ours too. A group may hold several blocks (`block_size` divides `group_size`).
_NBITS_4 = (
    _length("block", "block_size")
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
_FLATTEN = """
    flat_shape = Concat <axis = 0> (minus_one, k)
    a_flat = Reshape (a, flat_shape)
    x_shape = Shape <start = 0, end = -1> (x)
    y_shape = Concat <axis = 0> (x_shape, n)
"""
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

_BYTES = """
    zero_point = Constant <value = uint8 {0}> ()
    unit = Constant <value_float = 1.0> ()
    codes_float = DequantizeLinear (codes, unit, zero_point)
"""
# [256, values] that a byte stands for, by the digits of the byte to a base, the first code lowest. Rows may
# end in unused digits.
_DIGITS = """
    entries_float = Cast <to = 1> (codebook)
    first = Constant <value_int = 0> ()
    end = Constant <value_int = 256> ()
    stride = Constant <value_int = 1> ()
    bytes = Range (first, end, stride)
    byte_column = Unsqueeze (bytes, minus_one)
    powers = Constant <value_ints = {powers}> ()
    base = Constant <value_int = {base}> ()
    quotients = Div (byte_column, powers)
    digits = Mod (quotients, base)
    byte_table = Gather (entries_float, digits)
    index = Cast <to = 6> (codes_float)
    looked_up = Gather <axis = 0> (byte_table, index)
    row_shape = Concat <axis = 0> (n, minus_one)
    rows = Reshape (looked_up, row_shape)
    row_start = Constant <value_ints = [0]> ()
    row_axis = Constant <value_ints = [1]> ()
    values = Slice (rows, row_start, k, row_axis)
"""
# [tables * 256, 2] that a byte stands for in each table of 16, and the rows of a channel's own.
_DIGITS_OF_TABLES = """
    entries_float = Cast <to = 1> (codebook)
    tables_shape = Constant <value_ints = [-1, 16]> ()
    tables = Reshape (entries_float, tables_shape)
    first = Constant <value_int = 0> ()
    end = Constant <value_int = 256> ()
    stride = Constant <value_int = 1> ()
    bytes = Range (first, end, stride)
    byte_column = Unsqueeze (bytes, minus_one)
    powers = Constant <value_ints = [1, 16]> ()
    base = Constant <value_int = 16> ()
    quotients = Div (byte_column, powers)
    digits = Mod (quotients, base)
    byte_tables = Gather <axis = 1> (tables, digits)
    pairs_shape = Constant <value_ints = [-1, 2]> ()
    byte_table = Reshape (byte_tables, pairs_shape)
    byte_index = Cast <to = 6> (codes_float)
    table_int = Cast <to = 6> (table)
    table_size = Constant <value = int32 {256}> ()
    table_start = Mul (table_int, table_size)
    table_column = Unsqueeze (table_start, minus_one)
    index = Add (byte_index, table_column)
    looked_up = Gather <axis = 0> (byte_table, index)
    row_shape = Concat <axis = 0> (n, minus_one)
    rows = Reshape (looked_up, row_shape)
    row_start = Constant <value_ints = [0]> ()
    row_axis = Constant <value_ints = [1]> ()
    values = Slice (rows, row_start, k, row_axis)
"""
_WHOLE_BYTES = """
    entries_float = Cast <to = 1> (codebook)
    vectors_shape = Constant <value_ints = [256, -1]> ()
    vectors = Reshape (entries_float, vectors_shape)
    index = Cast <to = 6> (codes_float)
    values = Gather <axis = 0> (vectors, index)
"""
# Code j lies in bits 6j .. 6j + 5 of its row: in byte 6j / 8 and, from bit 4 on, in the next one.
_SIX_BITS = """
    entries_float = Cast <to = 1> (codebook)
    vectors_shape = Constant <value_ints = [64, 2]> ()
    vectors = Reshape (entries_float, vectors_shape)
    zero = Constant <value_int = 0> ()
    step_one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    count = Div (k_scalar, two)
    places = Range (zero, count, step_one)
    six = Constant <value_int = 6> ()
    eight = Constant <value_int = 8> ()
    bit = Mul (places, six)
    low_place = Div (bit, eight)
    bit_in_byte = Mod (bit, eight)
    next_place = Add (low_place, step_one)
    width = Shape <start = 1, end = 2> (codes)
    last_place = Sub (width, step_one)
    high_place = Min (next_place, last_place)
    low = Gather <axis = 1> (codes_float, low_place)
    high = Gather <axis = 1> (codes_float, high_place)
    byte_size = Constant <value_float = 256.0> ()
    high_shifted = Mul (high, byte_size)
    pair_float = Add (low, high_shifted)
    pair = Cast <to = 6> (pair_float)
    two_int = Constant <value = int32 {2}> ()
    bit_int = Cast <to = 6> (bit_in_byte)
    divisor = Pow (two_int, bit_int)
    quotient = Div (pair, divisor)
    code_count = Constant <value = int32 {64}> ()
    index = Mod (quotient, code_count)
    values = Gather <axis = 0> (vectors, index)
"""
_SCALED_PRODUCT = (
    _FLATTEN
    + """
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
_LOOK_UPS = {
    "8": _WHOLE_BYTES,
    "4": _DIGITS.format(powers="[1, 16]", base=16),
    "4M": _DIGITS_OF_TABLES,
    "2": _DIGITS.format(powers="[1, 4, 16, 64]", base=4),
    "T": _DIGITS.format(powers="[1, 3, 9, 27, 81]", base=3),
    "V8x4": _WHOLE_BYTES,
    "V6x2": _SIX_BITS,
}


def body_of(kind: Kind, variant: Variant) -> str:
    """The statements of a function: a node's inputs to ``y``, or to ``y0``, ``y1``, ... of a split."""
    int8 = kind.activation == "int8"
    if variant.table:
        product = _BYTES + _LOOK_UPS[kind.coding] + _SCALED_PRODUCT
    else:
        product = {"4": _NBITS_4, "8": _INTEGER_8 if int8 else _DEQUANTIZE_8}[kind.coding]
    split = _SPLIT.format(outputs=", ".join(output_names(variant))) if variant.outputs > 1 else ""
    return (
        _LENGTHS
        + _rows(variant)
        + _PROLOGUES[variant.prologue]
        + _ROUNDINGS[kind.activation]
        + product
        + (_STEP if int8 else _NO_STEP)
        + _EPILOGUES[variant.epilogue]
        + split
    )


def _rows(variant: Variant) -> str:
    """The inputs with one row for a sample as ``[B, 1, K]`` or ``[B, 1, N]``."""
    names = variant.per_sample
    if not variant.columns:
        return "".join(_ROW.format(name=name) for name in names)
    widths = ["n" if name == "gate" else "k" for name in names]
    cut = zip(names, widths, range(len(names)), strict=True)
    return _WIDE + "".join(_ROW_OF_WIDE.format(name=name, width=width, place=i) for name, width, i in cut)


def output_names(variant: Variant) -> list[str]:
    """``y``, or ``y0``, ``y1``, ... where the columns are split."""
    return ["y"] if variant.outputs == 1 else [f"y{i}" for i in range(variant.outputs)]


# PyTorch's order of operations: the root of the scale goes into both factors. 0 in a shape keeps a length.
ATTENTION_BODY = """
    minus_one = Constant <value_ints = [-1]> ()
    keep = Constant <value_ints = [0]> ()
    heads_scalar = Constant <value_int: int = @num_heads> ()
    heads = Reshape (heads_scalar, minus_one)
    split_shape = Concat <axis = 0> (keep, keep, heads, minus_one)
    q_split = Reshape (q, split_shape)
    k_split = Reshape (k, split_shape)
    v_split = Reshape (v, split_shape)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_split)
    k_heads = Transpose <perm = [0, 2, 3, 1]> (k_split)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_split)
    scale_value = Constant <value_float: float = @scale> ()
    root = Sqrt (scale_value)
    q_scaled = Mul (q_heads, root)
    k_scaled = Mul (k_heads, root)
    products = MatMul (q_scaled, k_scaled)
    scores = {scores}
    probabilities = Softmax <axis = -1> (scores)
    mixed = MatMul (probabilities, v_heads)
    tokens = Transpose <perm = [0, 2, 1, 3]> (mixed)
    rows_shape = Concat <axis = 0> (keep, keep, minus_one)
    y = Reshape (tokens, rows_shape)
"""
