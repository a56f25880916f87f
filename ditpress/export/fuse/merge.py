"""Low-bit layers side by side on one input, such as q, k and v, become one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from ditpress.export.functions import KINDS
from ditpress.export.fuse.pattern import constant, qlinear_nodes, take_over, text

COLUMNS = 64  # every output but the last is a multiple of this wide
_PER_CHANNEL = ("codes", "scale", "bias", "table")
_KEPT = ("K", "group_size", "fold_scales", "prologue", "epsilon", "epilogue")


def fuse_merge(graph: ir.Graph) -> int:
    """QLinear nodes of one module that differ only in codes, scales and bias become one with ``splits``.

    Same kind, input, prologue, group size, codebook and type of scales; no epilogue; widths that are
    multiples of 64. "One module" is judged by the names, ``<module>.to_q`` and ``<module>.to_k``: across
    modules, such as the key projections of one text for all blocks, merging saves nothing and keeps all
    results in memory.

    Returns:
        How many nodes took the place of others.
    """
    groups: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in qlinear_nodes(graph):
        key = _key(node)
        if key is not None:
            groups.setdefault(key, []).append(node)
    fired = 0
    for nodes in groups.values():
        if len(nodes) > 1:
            _merge(graph, nodes)
            fired += 1
    return fired


def _key(node: ir.Node) -> tuple[object, ...] | None:
    """What nodes must share to be merged; None for one that cannot be."""
    codes, scale, codebook, bias = node.inputs[1:5]
    count = len(KINDS[node.op_type].inputs)
    constants = (codes, scale, bias, *node.inputs[5:count])
    if any(value is None or value.const_value is None or value.is_graph_input() for value in constants):
        return None
    table = constant(codebook)
    wide = node.attributes["N"].as_int() % COLUMNS == 0
    if table is None or scale is None or not wide or len(node.outputs) > 1 or text(node, "epilogue") != "":
        return None
    module = (node.name or "").rpartition(".")[0]
    if not module:
        return None
    attributes = tuple(node.attributes[name].value for name in _KEPT)
    around = (node.inputs[0], *node.inputs[count:])
    return (module, node.op_type, scale.dtype, table.tobytes(), attributes, around)


def _merge(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    first = nodes[0]
    module = (first.name or "").rpartition(".")[0]
    name = f"{module}.{'+'.join((node.name or '').rpartition('.')[2] for node in nodes)}"
    widths = [node.attributes["N"].as_int() for node in nodes]
    own = KINDS[first.op_type].inputs
    inputs = [
        _concatenated(graph, [node.inputs[index] for node in nodes], f"{name}.{role}")
        if role in _PER_CHANNEL
        else first.inputs[index]
        for index, role in enumerate(own)
    ]
    attributes = dict(first.attributes)
    attributes["N"] = ir.AttrInt64("N", sum(widths))
    attributes["splits"] = ir.AttrInt64s("splits", widths)
    merged = ir.Node(
        first.domain,
        first.op_type,
        [*inputs, *first.inputs[len(own) :]],
        attributes.values(),
        num_outputs=len(nodes),
        name=name,
    )
    graph.insert_before(first, merged)  # all inputs are there already, and all readers come later
    for node, y in zip(nodes, merged.outputs, strict=True):
        take_over(node.outputs[0], y)
        graph.remove(node, safe=True)


def _concatenated(graph: ir.Graph, values: Sequence[ir.Value | None], name: str) -> ir.Value:
    """An initialiser of the rows of ``values``, put together when it is written: no second copy in memory."""
    tensors = [value.const_value for value in values if value is not None and value.const_value is not None]
    rows = sum(int(tensor.shape[0]) for tensor in tensors)
    shape = ir.Shape((rows, *tensors[0].shape[1:]))
    dtype = tensors[0].dtype
    value = ir.Value(
        name=name,
        shape=shape,
        type=ir.TensorType(dtype),
        const_value=ir.LazyTensor(partial(_rows, tensors, name), dtype, shape, name=name),
    )
    graph.register_initializer(value)
    return value


def _rows(tensors: Sequence[ir.TensorProtocol], name: str) -> ir.TensorProtocol:
    return ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors]), name=name)
