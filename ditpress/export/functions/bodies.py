"""Texts of the functions, in ONNX's own syntax: a prologue, a product, an epilogue, splits.

Each part reads and writes fixed names: ``shift_row``, ``modulation_row``, ``gate_row`` are made of the inputs
of these names, the prologue makes ``h`` of ``x``, the quantizer ``a`` (and ``step``) of ``h``, the product
``f`` of ``a`` and the weights, the bias ``z`` of ``f``, the epilogue ``y`` of ``z``.
"""

from __future__ import annotations

from ditpress.export.functions.kinds import GATE_RESIDUAL, GELU_TANH, LAYER_NORM_MODULATE, Kind, Variant
from ditpress.export.functions.products import length, product_of
from ditpress.export.functions.roundings import ROUNDINGS

_LENGTHS = (
    """
    minus_one = Constant <value_ints = [-1]> ()
"""
    + length("n", "N")
    + length("k", "K")
    + length("g", "group_size")
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

_STEP = """
    stepped = Mul (f, step)
    z = Add (stepped, bias)
"""
_NO_STEP = """
    z = Add (f, bias)
"""


def body_of(kind: Kind, variant: Variant) -> str:
    """The statements of a function: a node's inputs to ``y``, or to ``y0``, ``y1``, ... of a split."""
    int8 = kind.activation == "int8"
    split = _SPLIT.format(outputs=", ".join(output_names(variant))) if variant.outputs > 1 else ""
    return (
        _LENGTHS
        + _rows(variant)
        + _PROLOGUES[variant.prologue]
        + ROUNDINGS[kind.activation]
        + product_of(kind, variant)
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
