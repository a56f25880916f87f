"""The same numbers from fewer operators: what the exporter writes about shapes and orders of dimensions.

A step of a small model is tens of operators that take longer to start than to compute. ONNX Runtime leaves
these as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from ditpress.export.fuse.pattern import constant, integers, made_by, numbers, shape_of, take_over


def shorten(model: ir.Model) -> None:
    """Rewrite in place; nodes that nothing reads any more stay.

    * Reshape to a shape with one length that is not known: to the known lengths and -1.
    * Einsum that only puts the dimensions of one tensor in another order: Transpose.
    * Concat of a Concat's two halves in the other order (sine and cosine of a timestep): one Concat.
    """
    for node in list(model.graph):
        if node.domain != "":
            continue
        if node.op_type == "Reshape":
            _reshape(node)
        elif node.op_type == "Einsum":
            _einsum(node)
        elif node.op_type == "Concat":
            _turned_halves(node)


def _reshape(node: ir.Node) -> None:
    wanted = node.inputs[1]
    lengths = None if wanted is None or wanted.const_value is not None else numbers(wanted)
    if lengths is None:
        return
    known = [length for length in lengths if isinstance(length, int) and length > 0]
    if len(known) + 1 != len(lengths):
        return
    shape = [length if isinstance(length, int) else -1 for length in lengths]
    if -1 in shape:
        node.replace_input_with(1, integers(node, shape))


def _einsum(node: ir.Node) -> None:
    operand, arrow, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    distinct = len(set(operand)) == len(operand) and operand.isalpha()
    if len(node.inputs) != 1 or not arrow or not distinct or sorted(operand) != sorted(result):
        return
    order = [operand.index(letter) for letter in result]
    _take_place(node, ir.node("Transpose", [node.inputs[0]], {"perm": order}))


def _turned_halves(node: ir.Node) -> None:
    if len(node.inputs) != 2:
        return
    cuts = [made_by(value, "Slice") for value in node.inputs]
    whole = None if cuts[0] is None else cuts[0].inputs[0]
    joined = made_by(whole, "Concat")
    dims = shape_of(whole)
    if whole is None or joined is None or dims is None or len(joined.inputs) != 2:
        return
    axis = joined.attributes["axis"].as_int() % len(dims)
    if node.attributes["axis"].as_int() % len(dims) != axis:
        return
    first = shape_of(joined.inputs[0])
    half = None if first is None else first[axis]
    full = dims[axis]
    if not isinstance(half, int) or not isinstance(full, int):
        return
    if [_range(cut, whole, axis, full) for cut in cuts] == [(half, full), (0, half)]:
        _take_place(node, ir.node("Concat", joined.inputs[::-1], {"axis": axis}))


def _range(cut: ir.Node | None, whole: ir.Value, axis: int, full: int) -> tuple[int, int] | None:
    """What a Slice takes of ``whole`` along ``axis`` alone, all of it in between; else None."""
    if cut is None or cut.inputs[0] is not whole or len(cut.inputs) < 4:
        return None
    values = [constant(value) for value in cut.inputs[1:]]
    if any(value is None or value.size != 1 for value in values):
        return None
    start, end, along, *step = (int(value.reshape(-1)[0]) for value in values if value is not None)
    rank = len(shape_of(whole) or ())
    if along % rank != axis or step not in ([], [1]) or start < 0 or end < 0:
        return None
    return min(start, full), min(end, full)


def _take_place(old: ir.Node, new: ir.Node) -> None:
    graph = old.graph
    assert isinstance(graph, ir.Graph)
    new.name = old.name
    graph.insert_before(old, new)
    take_over(old.outputs[0], new.outputs[0])
    graph.remove(old, safe=True)
