"""Shift, modulation and gate are read where one linear wrote them all."""

from __future__ import annotations

import math

import onnx_ir as ir

from ditpress.export.functions import KINDS, Variant
from ditpress.export.functions.kinds import COLUMNS
from ditpress.export.fuse.pattern import Dims, constant, made_by, qlinear_nodes, shape_of, text


def fuse_columns(graph: ir.Graph) -> int:
    """Rows per sample that Split and Unsqueeze cut out of a wider one become columns of that one.

    A DiT's modulation linear makes the shift, scale and gate of both halves of a block side by side,
    ``[B, 6 * K]``; PixArt adds them as ``[B, 6, K]``. Nodes with a norm or a gate then take that as it is,
    and an attribute says where each of their rows begins. Other rows stay as they are.

    Returns:
        How many nodes have such inputs now.
    """
    fired = 0
    for node in qlinear_nodes(graph):
        kind = KINDS[node.op_type]
        variant = Variant(prologue=text(node, "prologue"), epilogue=text(node, "epilogue"))
        names = variant.inputs(kind)
        places = [names.index(name) for name in variant.per_sample]
        rows = [node.inputs[place] for place in places]
        found = [(row, 0) if row is None else _wide(row) for row in rows]
        if COLUMNS in node.attributes or all(wide is row for row, (wide, _) in zip(rows, found, strict=True)):
            continue
        for place, (wide, _) in zip(places, found, strict=True):
            node.replace_input_with(place, wide)
        node.attributes[COLUMNS] = ir.AttrInt64s(COLUMNS, [column for _, column in found])
        fired += 1
    return fired


def _wide(row: ir.Value) -> tuple[ir.Value, int]:
    """What ``row`` ``[B, 1, K]`` was cut from, and its first column there, all but B as one dimension."""
    column = 0
    while True:
        source, skipped = _before_unsqueeze(row), 0
        if source is None:
            source, skipped = _before_split(row)
        if source is None:
            return row, column
        row, column = source, column + skipped


def _before_unsqueeze(value: ir.Value) -> ir.Value | None:
    """``[B, K]`` of the ``[B, 1, K]`` that Unsqueeze makes of it."""
    node = made_by(value, "Unsqueeze")
    axes = None if node is None else constant(node.inputs[1])
    dims = shape_of(value)
    if node is None or axes is None or dims is None or len(dims) != 3:
        return None
    return node.inputs[0] if [int(axis) % 3 for axis in axes.reshape(-1)] == [1] else None


def _before_split(value: ir.Value) -> tuple[ir.Value | None, int]:
    """What Split cuts ``value`` from, and the columns before it; None where they are not side by side."""
    node, dims = value.producer(), shape_of(value)
    if node is None or node.domain != "" or node.op_type != "Split" or dims is None:
        return None, 0
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(dims)
    source = shape_of(node.inputs[0])
    if axis == 0 or source is None or source[0] is None or source[0] != dims[0]:
        return None, 0
    before, widths = dims[1:axis], dims[axis + 1 :]
    if any(dim != 1 for dim in before):  # other columns lie between those of one piece
        return None, 0
    skipped, numbers = _skipped(node, node.outputs.index(value), source[axis]), _known(widths)
    if skipped is None or numbers is None:
        return None, 0
    return node.inputs[0], skipped * math.prod(numbers)


def _skipped(split: ir.Node, index: int, length: int | str | None) -> int | None:
    """What the outputs of a Split before that of ``index`` take of the ``length`` that is cut."""
    if len(split.inputs) > 1:
        pieces = constant(split.inputs[1])
        return None if pieces is None else int(pieces[:index].sum())
    equal = -(-length // len(split.outputs)) if isinstance(length, int) else None  # the last may be shorter
    return None if equal is None else index * equal


def _known(dims: Dims) -> list[int] | None:
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return numbers if len(numbers) == len(dims) else None
