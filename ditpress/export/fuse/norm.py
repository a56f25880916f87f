"""Adaptive layer norm before low-bit layers becomes their prologue."""

from __future__ import annotations

import onnx_ir as ir

from ditpress.export.functions import KINDS
from ditpress.export.functions.kinds import LAYER_NORM_MODULATE
from ditpress.export.fuse.pattern import (
    before,
    fits,
    insert_inputs,
    integers,
    is_filled,
    made_by,
    other,
    qlinear_nodes,
    shape_of,
    text,
)


def fuse_norm(graph: ir.Graph) -> int:
    """``layer_norm(x) * (1 + modulation) + shift`` before QLinear nodes.

    The layer norm has no affine part of its own, modulation and shift are one row per sample, ``[B, 1, K]``
    by shape. Other readers of the result keep the plain operators.

    Returns:
        How many results were fused into their readers, however many of them each has.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in qlinear_nodes(graph):
        x = node.inputs[0]
        if x is not None and text(node, "prologue") == "":
            readers.setdefault(x, []).append(node)
    fired = 0
    for result, nodes in readers.items():
        parts = _parts(result)
        if parts is None:
            continue
        x, modulation, shift, epsilon = parts
        for node in nodes:
            node.replace_input_with(0, x)
            insert_inputs(node, len(KINDS[node.op_type].inputs), [shift, modulation])
            node.attributes["prologue"] = ir.AttrString("prologue", LAYER_NORM_MODULATE)
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
        fired += 1
    return fired


def _parts(result: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, float] | None:
    """x, modulation, shift and epsilon of ``layer_norm(x) * (1 + modulation) + shift``."""
    added = made_by(result, "Add")
    for product in () if added is None else added.inputs:
        scaled = made_by(product, "Mul")
        if added is None or product is None or scaled is None:
            continue
        shift = other(added, product)
        for normalized in scaled.inputs:
            norm = made_by(normalized, "LayerNormalization")
            if norm is None or normalized is None or not _plain(norm):
                continue
            x = norm.inputs[0]
            dims = shape_of(x)
            if x is None or shift is None or dims is None or len(dims) != 3 or not fits(x, dims):
                continue
            row = (dims[0], 1, dims[2])
            modulation = _without_one(other(scaled, normalized), row, added)
            if modulation is not None and fits(shift, row):
                epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
                return x, modulation, shift, epsilon
    return None


def _plain(norm: ir.Node) -> bool:
    """Whether a LayerNormalization works on the last dimension and has no weight or bias to speak of."""
    last = "axis" not in norm.attributes or norm.attributes["axis"].as_int() == -1
    bias = norm.inputs[2] if len(norm.inputs) > 2 else None
    return last and is_filled(norm.inputs[1], 1.0) and (bias is None or is_filled(bias, 0.0))


def _without_one(
    factor: ir.Value | None, row: tuple[int | str | None, ...], anchor: ir.Node
) -> ir.Value | None:
    """``modulation`` of the factor ``1 + modulation``, also where the 1 is added to ``[B, K]`` first."""
    widened = made_by(factor, "Unsqueeze")
    added = made_by(factor if widened is None else widened.inputs[0], "Add")
    if factor is None or added is None or not fits(factor, row):
        return None
    for one in added.inputs:
        modulation = None if one is None else other(added, one)
        if modulation is None or not is_filled(one, 1.0):
            continue
        if widened is None:
            return modulation if fits(modulation, row) else None
        if fits(modulation, (row[0], row[2])):
            return before(anchor, "Unsqueeze", [modulation, integers(anchor, [1])], row)
    return None
