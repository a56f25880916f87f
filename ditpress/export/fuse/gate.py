"""The gated residual after a low-bit layer becomes its epilogue."""

from __future__ import annotations

from typing import TypeGuard

import onnx_ir as ir

from ditpress.export.functions.kinds import GATE_RESIDUAL
from ditpress.export.fuse.pattern import (
    fits,
    insert_inputs,
    is_filled,
    only_user,
    other,
    qlinear_nodes,
    shape_of,
    take_over,
    text,
)


def fuse_gate(graph: ir.Graph) -> int:
    """``gate * y + residual`` of a QLinear node's y that nothing else reads.

    The gate is one row per sample, ``[B, 1, N]`` by shape, the residual has the shape of y. A division of y
    by 1 on the way (diffusers' rescale_output_factor) is dropped.

    Returns:
        How many were fused.
    """
    fired = 0
    for node in qlinear_nodes(graph):
        y = node.outputs[0]
        dims = shape_of(y)
        if len(node.outputs) > 1 or text(node, "epilogue") != "" or dims is None or len(dims) != 3:
            continue
        value, user, passed = y, only_user(y), []
        if _is(user, "Div") and user.inputs[0] is y and is_filled(user.inputs[1], 1.0):
            value, passed = user.outputs[0], [user]
            user = only_user(value)
        if not _is(user, "Mul"):
            continue
        gate, product = other(user, value), user.outputs[0]
        added = only_user(product)
        residual = other(added, product) if _is(added, "Add") else None
        if gate is None or residual is None or added is None:
            continue
        if not fits(gate, (dims[0], 1, dims[2])) or not fits(residual, dims):
            continue
        insert_inputs(node, len(node.inputs), [gate, residual])
        node.attributes["epilogue"] = ir.AttrString("epilogue", GATE_RESIDUAL)
        graph.remove(node)
        graph.insert_before(added, node)  # gate and residual may be computed after the layer
        take_over(added.outputs[0], y)
        graph.remove([added, user, *passed], safe=True)
        fired += 1
    return fired


def _is(node: ir.Node | None, op_type: str) -> TypeGuard[ir.Node]:
    return node is not None and node.domain == "" and node.op_type == op_type
