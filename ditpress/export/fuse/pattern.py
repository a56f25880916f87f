"""What the rewrite rules share: reading a graph backwards, and shapes by the names of their dimensions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ditpress.export.functions import DOMAIN, KINDS

Dims = tuple[int | str | None, ...]  # a number, a name, or unknown
MAX_CONSTANT = 2**20  # elements; the rules read small constants only


def qlinear_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The QLinear nodes, in the order of the graph."""
    return [node for node in graph if node.domain == DOMAIN and node.op_type in KINDS]


def text(node: ir.Node, attribute: str) -> str:
    """A string attribute."""
    return node.attributes[attribute].as_string()


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The standard operator ``op_type`` that computes ``value`` as its first output, if one does."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type != op_type or node.outputs[0] is not value:
        return None
    return node


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone reads ``value``, once; None where there are several or the graph returns it."""
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """A small constant of the graph."""
    if value is None or value.const_value is None or value.const_value.size > MAX_CONSTANT:
        return None
    return value.const_value.numpy()


def is_filled(value: ir.Value | None, number: float) -> bool:
    """Whether every element of a constant is ``number``."""
    array = constant(value)
    return array is not None and array.size > 0 and bool((array == number).all())


def other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The second operand of a node of two inputs, in either order; None for ``value`` with itself."""
    first, second = node.inputs
    if first is value:
        return None if second is value else second
    return first if second is value else None


def shape_of(value: ir.Value | None) -> Dims | None:
    """The dimensions of a value; None where its rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def fits(value: ir.Value | None, dims: Dims) -> bool:
    """Whether a float32 value has exactly these dimensions, all of them known."""
    if value is None or value.dtype not in (None, ir.DataType.FLOAT):
        return False
    return None not in dims and shape_of(value) == dims


def numbers(value: ir.Value | None) -> Dims | None:
    """The elements of an integer vector or scalar as the graph computes it of shapes."""
    array = constant(value)
    if array is not None:
        whole = array.ndim <= 1 and np.issubdtype(array.dtype, np.integer)
        return tuple(int(element) for element in array.reshape(-1)) if whole else None
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze"):
        inner = numbers(node.inputs[0])
        return inner if inner is not None and len(inner) == 1 else None
    if node.op_type == "Concat":
        parts = [numbers(part) for part in node.inputs]
        return None if None in parts else tuple(dim for part in parts if part is not None for dim in part)
    if node.op_type == "Shape":
        dims = shape_of(node.inputs[0])
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else None
        return None if dims is None else dims[start:end]
    if node.op_type == "Slice" and len(node.inputs) == 3:
        dims, start_at, end_at = (numbers(part) for part in node.inputs)
        if dims is None or not start_at or not end_at:
            return None
        first, last = start_at[0], end_at[0]
        return dims[first:last] if isinstance(first, int) and isinstance(last, int) else None
    return None


def insert_inputs(node: ir.Node, index: int, values: list[ir.Value]) -> None:
    """Add inputs to a node before position ``index``."""
    inputs = list(node.inputs)
    inputs[index:index] = values
    node.resize_inputs(len(inputs))
    for position, value in enumerate(inputs):
        node.replace_input_with(position, value)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand wherever ``old`` stood, with its shape, type and name."""
    new.shape, new.type = old.shape, old.type
    name, old.name = old.name, None
    new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def before(
    anchor: ir.Node, op_type: str, inputs: list[ir.Value], shape: Dims | None, **attributes: int | list[int]
) -> ir.Value:
    """Insert a standard operator with one float output before ``anchor``; returns the output."""
    graph = anchor.graph
    assert isinstance(graph, ir.Graph)
    known = None if shape is None else ir.Shape(shape)
    result = ir.Value(shape=known, type=ir.TensorType(ir.DataType.FLOAT))
    graph.insert_before(anchor, ir.node(op_type, inputs, attributes, outputs=[result]))
    return result


def integers(anchor: ir.Node, values: list[int]) -> ir.Value:
    """A constant int64 vector for a node that is inserted before ``anchor``."""
    graph = anchor.graph
    assert isinstance(graph, ir.Graph)
    name = f"ditpress.{'_'.join(map(str, values))}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(values, np.int64), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
