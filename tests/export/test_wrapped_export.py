"""Wrapped layers in ONNX: standard operators around the same nodes, and the same numbers."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from export_models import HIDDEN, low_bit, make_calls, make_dit
from torch import nn
from wrapped_models import norm_outputs, wrap_dit

from ditpress.export.onnx import export_transformer
from ditpress.export.parity import cases, compare
from ditpress.export.session import onnx_session
from ditpress.kernels.wrap import branch_modules
from ditpress.load import anatomy_of
from ditpress.load.modules import replace_module

LAYERS = 2


def make_wrapped(activation: str) -> Any:
    """All of ``wrap_dit`` and a norm after the modulation; linears of the blocks int4, branches int8."""
    model = wrap_dit(make_dit(LAYERS))
    for index in range(LAYERS):
        norm_outputs(model, f"transformer_blocks.{index}.norm1.linear", torch.Generator().manual_seed(index))
    main = [
        model.get_submodule(name)
        for name in anatomy_of(model).linears(model)
        if "transformer_blocks" in name and ".emb." not in name
    ]
    branches = [module for module in branch_modules(model) if isinstance(module, nn.Linear)]
    torch.manual_seed(0)
    for linear in main:
        replace_module(model, linear, low_bit(linear, "int4", 32, activation))
    for linear in [module for module in model.modules() if module in branches]:
        replace_module(model, linear, low_bit(linear, "int8", linear.in_features, activation))
    return model


@pytest.mark.parametrize("target", ["ditpress", "portable"])
@pytest.mark.parametrize("activation", ["none", "int8"])
def test_wrapped_layers_compute_what_torch_computes(activation: str, target: Any, tmp_path: Any) -> None:
    model, calls = make_wrapped(activation), make_calls(3)
    path, parity = export_transformer(model, tmp_path / "transformer", calls, target=target)
    onnx.checker.check_model(str(path))
    assert parity.relative <= 1e-4 or (activation == "int8" and parity.psnr >= 30)
    for library in (False, True) if target == "ditpress" else (False,):
        held = compare(onnx_session(path, library=library), cases(model, calls, (1, 2, 5)))
        assert held.relative <= 1e-4 if activation == "none" else held.psnr >= 30


def test_transforms_are_small_operators_and_shared(tmp_path: Any) -> None:
    model = make_wrapped("int8")
    path, _ = export_transformer(model, tmp_path / "transformer", make_calls(), fuse=["merge"])
    graph = onnx.load(path).graph
    merged = [node for node in graph.node if any(a.name == "splits" for a in node.attribute)]
    assert [node.name for node in merged] == [
        f"transformer_blocks.{index}.attn1.to_q+to_k+to_v" for index in range(LAYERS)
    ]
    made = {output: node for node in graph.node for output in node.output}
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    last = [
        node
        for node in graph.node
        if node.name.startswith("transformer_blocks") and ".ff.net.2." in node.name
    ]
    assert len(last) == 3 * LAYERS  # main linear, down and up

    def rotation(node: Any, passed: list[str]) -> str:
        """The matrix of the product that a node reads, through the operators of these types."""
        for operator in passed:
            node = made[node.input[0]]
            assert node.op_type == operator
        return node.input[1]

    # One rotation for q, k and v, another for the MLP; one matrix of each side for all blocks.
    used = {rotation(node, ["Reshape", "MatMul"]) for node in merged}
    used_last = {
        rotation(node, ["Add", "Reshape", "MatMul"]) for node in last if not node.name.endswith(".up")
    }
    assert len(used) == len(used_last) == 1
    matrices = [made[name].input[0] if name in made else name for name in (*used, *used_last)]
    assert [shapes[name] for name in matrices] == [[HIDDEN, HIDDEN], [4 * HIDDEN, 4 * HIDDEN]]
