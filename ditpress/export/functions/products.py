"""Texts of the product of rounded inputs and weights as they are stored: ``f`` of ``a`` and the codes.

Constant folding shapes them. Written in plain arithmetic, ONNX Runtime unpacks every weight to float32 while
it loads, which costs eight times the memory of 4-bit codes. It never folds ``DequantizeLinear``, so that
operator stands between the codes and everything that would make them larger.
"""

from __future__ import annotations

from ditpress.export.functions.kinds import Kind, Variant


def length(name: str, attribute: str) -> str:
    """An attribute of the node as a vector of one element; a constant once the function is inlined."""
    return f"""
    {name}_scalar = Constant <value_int: int = @{attribute}> ()
    {name} = Reshape ({name}_scalar, minus_one)
"""


# MatMulNBits wants codes [N, K / block, block / 2] and one float32 scale per block; its default zero point
# for 4 bits is 8, ours too. A group may hold several blocks (`block_size` divides `group_size`).
_NBITS_4 = (
    length("block", "block_size")
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
# The digits of every byte to a base, the first code lowest; rows may end in unused digits.
_DIGITS_OF_BYTES = """
    first = Constant <value_int = 0> ()
    end = Constant <value_int = 256> ()
    stride = Constant <value_int = 1> ()
    bytes = Range (first, end, stride)
    byte_column = Unsqueeze (bytes, minus_one)
    powers = Constant <value_ints = {powers}> ()
    base = Constant <value_int = {base}> ()
    quotients = Div (byte_column, powers)
    digits = Mod (quotients, base)
"""
_VALUES_OF_BYTES = """
    looked_up = Gather <axis = 0> (byte_table, index)
    row_shape = Concat <axis = 0> (n, minus_one)
    rows = Reshape (looked_up, row_shape)
    row_start = Constant <value_ints = [0]> ()
    row_axis = Constant <value_ints = [1]> ()
    values = Slice (rows, row_start, k, row_axis)
"""
# byte_table [256, values]: what a byte stands for.
_DIGITS = (
    _DIGITS_OF_BYTES
    + """
    entries_float = Cast <to = 1> (codebook)
    byte_table = Gather (entries_float, digits)
    index = Cast <to = 6> (codes_float)
"""
    + _VALUES_OF_BYTES
)
# byte_table [tables * 256, 2]: what it stands for in each table of 16; index: the rows of a channel's own.
_DIGITS_OF_TABLES = (
    _DIGITS_OF_BYTES.format(powers="[1, 16]", base=16)
    + """
    entries_float = Cast <to = 1> (codebook)
    tables_shape = Constant <value_ints = [-1, 16]> ()
    tables = Reshape (entries_float, tables_shape)
    byte_tables = Gather <axis = 1> (tables, digits)
    pairs_shape = Constant <value_ints = [-1, 2]> ()
    byte_table = Reshape (byte_tables, pairs_shape)
    byte_index = Cast <to = 6> (codes_float)
    table_int = Cast <to = 6> (table)
    table_size = Constant <value = int32 {256}> ()
    table_start = Mul (table_int, table_size)
    table_column = Unsqueeze (table_start, minus_one)
    index = Add (byte_index, table_column)
"""
    + _VALUES_OF_BYTES
)
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


def product_of(kind: Kind, variant: Variant) -> str:
    """``f`` [.., N], still without the step of the inputs and without bias."""
    if variant.table:
        return _BYTES + _LOOK_UPS[kind.coding] + _SCALED_PRODUCT
    return {"4": _NBITS_4, "8": _INTEGER_8 if kind.activation == "int8" else _DEQUANTIZE_8}[kind.coding]
