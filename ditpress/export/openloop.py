"""Parity of a model that rounds its activations, piece by piece on equal inputs.

Rounding to few bits is a step function: PyTorch and ONNX Runtime differ in the last bit of a layer norm, one
activation falls on the other side of a step, and from there on the two runs see different integers. The end
results of two correct runtimes then differ by a part of the quantization noise, however exact each operation
is, and no tolerance near float32 accuracy can hold for them.

What can be held to that accuracy is every piece of the graph. The graph is cut at each rounding layer: the
layer gets the input that PyTorch's layer got, and what follows gets the output that PyTorch's layer gave. All
pieces then work on the same bits as in PyTorch, and together they are the whole graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from ditpress.errors import StageError
from ditpress.export.functions import DOMAIN, KINDS
from ditpress.export.inputs import Keywords, Signature
from ditpress.export.parity import relative_difference
from ditpress.export.session import onnx_session, run_session_outputs


def rounding_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes that round their input to few bits, in the order of the graph."""
    return [
        node
        for node in model.graph
        if node.domain == DOMAIN and node.op_type in KINDS and KINDS[node.op_type].rounds
    ]


def compare_pieces(
    path: Path,
    transformer: nn.Module,
    kwargs: Mapping[str, Any],
    batch_sizes: Sequence[int],
    library: bool = True,
) -> float:
    """Largest difference of any piece, as a fraction of the range of the PyTorch tensor it is compared with.

    Args:
        path: the exported model, with ``ditpress`` nodes named after their modules.
        transformer: the module it was exported from, in eval mode.
        kwargs: one call.
        batch_sizes: samples per run.
        library: False checks the model-local functions instead of the kernels.

    Raises:
        StageError: a node whose calls in PyTorch cannot be told apart.
    """
    signature = Signature.of(kwargs)
    with tempfile.TemporaryDirectory(prefix=".pieces.", dir=path.parent) as folder:
        cut = Path(folder) / "model.onnx"
        names = _cut(path, cut)
        session = onnx_session(cut, library=library)
        worst = [
            _run(session, transformer, signature, signature.arguments(kwargs, batch), names)
            for batch in batch_sizes
        ]
        del session  # it has the file mapped
    return float(torch.tensor(worst, dtype=torch.float64).max())  # keeps a NaN, unlike max()


def _cut(path: Path, target: Path) -> list[str]:
    """Write the cut graph: ``name.x``, ``name.y`` are new inputs, ``name.x.out``, ``name.y.out`` outputs."""
    model = ir.load(path)
    graph = model.graph
    names: list[str] = []
    for node in rounding_nodes(model):
        x, y = node.inputs[0], node.outputs[0]
        if x is None or node.name is None:
            raise StageError(f"exported node {node.op_type} has no name or no input")
        names.append(node.name)
        given_x = ir.Value(name=f"{node.name}.x", shape=x.shape, type=x.type)
        given_y = ir.Value(name=f"{node.name}.y", shape=y.shape, type=y.type)
        seen_x = ir.node("Identity", [x], outputs=[_like(x, f"{node.name}.x.out")])
        graph.insert_before(node, seen_x)
        node.replace_input_with(0, given_x)
        ir.convenience.replace_all_uses_with(y, given_y, replace_graph_outputs=True)
        y.name = f"{node.name}.y.out"
        graph.inputs.extend([given_x, given_y])
        graph.outputs.extend([seen_x.outputs[0], y])
    ir.save(model, target, external_data=f"{target.name}.data")
    return names


def _like(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)


def _run(
    session: onnxruntime.InferenceSession,
    transformer: nn.Module,
    signature: Signature,
    arguments: dict[str, Tensor],
    names: list[str],
) -> float:
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            if not any(torch.equal(args[0], x) for x, _ in seen[name]):
                seen[name].append((args[0].detach().clone(), result.detach().clone()))

        return hook

    handles = [transformer.get_submodule(name).register_forward_hook(record(name)) for name in seen]
    try:
        with torch.no_grad():
            sample = Keywords(transformer, signature)(*(arguments[name] for name in signature.tensors))
    finally:
        for handle in handles:
            handle.remove()
    given, expected = dict(arguments), {session.get_outputs()[0].name: sample}
    for name, calls in seen.items():
        if len(calls) != 1:
            raise StageError(f"layer {name!r} ran on {len(calls)} different inputs in one call, expected one")
        given[f"{name}.x"], given[f"{name}.y"] = calls[0]
        expected[f"{name}.x.out"], expected[f"{name}.y.out"] = calls[0]
    actual = run_session_outputs(session, given)
    return float(
        torch.tensor([relative_difference(actual[name], tensor) for name, tensor in expected.items()])
        .double()
        .max()
    )
