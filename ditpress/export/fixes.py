"""Repairs and clean-up of an exported graph, before it is written."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import torch

from ditpress.errors import StageError

BATCH = "batch"
EXPORTER_METADATA = "pkg.torch"


def simplify(model: ir.Model) -> None:
    """Fold small constants, store equal tensors once and compute equal expressions once.

    Embedders that a DiT repeats in every block are one set of tensors and one computation afterwards.

    The rewrite rules of the exporter's own optimizer are left out on purpose: they drop ``x + 1e-15`` as if
    it were ``x + 0``, which turns a guarded division into 0 / 0. ONNX Runtime does the rest while it loads.
    """
    if model.functions:
        passes.InlinePass()(model)
    onnxscript.optimizer.fold_constants(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    store_once(model)
    passes.IdentityEliminationPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def store_once(model: ir.Model) -> None:
    """Replace initialisers of equal type, shape and content by the first of them.

    (onnx_ir's own pass stops at arrays that are not contiguous.)
    """
    first: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    initializers = model.graph.initializers
    for name, value in list(initializers.items()):
        tensor = value.const_value
        if (
            tensor is None
            or tensor.dtype == ir.DataType.STRING
            or value.is_graph_input()
            or value.is_graph_output()
        ):
            continue
        array = tensor.numpy()
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        digest = hashlib.blake2b(content.data, digest_size=32).digest()
        kept = first.setdefault((tensor.dtype, array.shape, digest), value)
        if kept is not value:
            ir.convenience.replace_all_uses_with(value, kept)
            del initializers[name]


def repair(model: ir.Model) -> None:
    """Rewrite what ONNX Runtime refuses although it is right in PyTorch.

    * ``squeeze`` on a dimension that is not 1 does nothing in PyTorch and is invalid in ONNX: dropped.
    * ``Where`` on booleans has no CPU kernel: ``(c and x) or (not c and y)``.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Squeeze" and node.domain == "" and _squeezes_nothing(node):
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            graph.remove(node, safe=True)
        elif node.op_type == "Where" and node.domain == "":
            condition, yes, no = node.inputs
            if yes is None or no is None or yes.dtype != ir.DataType.BOOL or no.dtype != ir.DataType.BOOL:
                continue
            both = ir.node("And", [condition, yes])
            inverted = ir.node("Not", [condition])
            neither = ir.node("And", [inverted.outputs[0], no])
            result = ir.node("Or", [both.outputs[0], neither.outputs[0]])
            graph.insert_before(node, [both, inverted, neither, result])
            result.outputs[0].shape, result.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            ir.convenience.replace_all_uses_with(node.outputs[0], result.outputs[0])
            graph.remove(node, safe=True)


def _squeezes_nothing(node: ir.Node) -> bool:
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return False
    axes, shape = node.inputs[1].const_value, node.inputs[0].shape
    if axes is None or shape is None or axes.size != 1:
        return False
    return shape[int(axes.numpy().reshape(-1)[0])] != 1


def name_batch(model: ir.Model, batched: frozenset[str]) -> None:
    """Call the batch dimension ``batch`` wherever its symbol appears, and check that it is symbolic.

    Raises:
        StageError: an input that should have a dynamic batch has a fixed one, or another symbol.
    """
    symbols = set()
    for value in model.graph.inputs:
        if value.name in batched:
            first = None if value.shape is None else value.shape[0]
            if not isinstance(first, ir.SymbolicDim) or first.value is None:
                raise StageError(
                    f"exported input {value.name!r} has the fixed batch {first}: the graph is not dynamic"
                )
            symbols.add(first.value)
    if len(symbols) != 1:
        raise StageError(
            f"exported inputs disagree on the batch dimension: {', '.join(sorted(symbols)) or 'none'}"
        )
    (symbol,) = symbols
    for value in _values(model):
        if value.shape is None or not isinstance(value.shape, ir.Shape) or value.shape.frozen:
            continue
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim):
                # Expressions of the symbol (2*s10) say nothing once it is renamed.
                value.shape[axis] = ir.SymbolicDim(BATCH if dim.value == symbol else None)


def strip_metadata(model: ir.Model) -> None:
    """Remove everything the exporter wrote down about this machine: stack traces, paths, module names.

    Raises:
        StageError: a name or attribute that is part of the graph itself holds a local path.
    """
    passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        graph.doc_string = None
    for value in _values(model):
        value.metadata_props.clear()
        value.doc_string = None
    folders = local_folders()
    for text in _texts(model):
        if EXPORTER_METADATA in text or any(folder in text for folder in folders):
            raise StageError(f"exported graph still holds {text[:80]!r}: a local path or exporter metadata")


def local_folders() -> list[str]:
    """Folders of this machine that no published file may mention."""
    places = (Path.cwd(), Path.home(), Path(sys.prefix), Path(torch.__file__).parent, Path(__file__).parent)
    return sorted({str(place) for place in places if len(place.parts) > 2})


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs


def _texts(model: ir.Model) -> Iterator[str]:
    """Every text that ends up in the file."""
    yield from (model.graph.name or "", model.producer_name or "", model.producer_version or "")
    for value in _values(model):
        yield value.name or ""
        if value.const_value is not None:
            yield from (value.const_value.name or "", value.const_value.doc_string or "")
    for node in model.graph.all_nodes():
        yield node.name or ""
        yield from (*node.metadata_props, *node.metadata_props.values(), node.doc_string or "")
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.STRING, ir.AttributeType.STRINGS):
                yield str(attribute.value)
