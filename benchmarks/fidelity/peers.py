"""What other tools make of the same layers: those that a recipe quantizes, every linear of the blocks."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ditpress.errors import InputError
from ditpress.load.anatomy import Role
from ditpress.load.denoiser import Denoiser
from ditpress.validate.size import stored_modules

KEPT = (Role.EMBEDDER, Role.FINAL, Role.OTHER)  # as in every recipe


def quantized_layers(denoiser: Denoiser) -> dict[str, nn.Linear]:
    """The float linears that every row quantizes, by name: attention, MLP and modulation of the blocks."""
    transformer = denoiser.transformer
    roles = denoiser.anatomy.linears(transformer)
    return {name: transformer.get_submodule(name) for name, role in roles.items() if role not in KEPT}


def stored_bytes(denoiser: Denoiser, weight_bits: Mapping[str, int]) -> int:
    """Bytes of the whole transformer where the weights of ``weight_bits`` take so many bits.

    Everything else counts as in :mod:`ditpress.validate.size`: in float16 where that is exact.
    """
    bits = sum(stored.bits for stored in stored_modules(denoiser.transformer).values())
    for name, taken in weight_bits.items():
        linear = denoiser.transformer.get_submodule(name)
        weight = nn.Module()
        weight.register_parameter("weight", linear.weight)
        bits += taken - stored_modules(weight)[""].bits
    return (bits + 7) // 8


def onnxruntime_nbits(
    denoiser: Denoiser, algorithm: str, block: int, source: Path, folder: Path
) -> dict[str, int]:
    """``MatMulNBitsQuantizer`` on the float ONNX file; writes ``folder/model.onnx`` and ``config.json``.

    Args:
        algorithm: "rtn" (its default algorithm, with zero points as is its default) or "hqq".
        block: weights per scale.
        source: folder of the original's model.onnx.

    Returns:
        bits of each layer's weight: codes, scales and zero points as the file has them.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        HQQWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(source / "model.onnx"))
    model.replace_gemm_with_matmul()
    del model.model.graph.value_info[:]  # shapes of weights that are transposed now
    nodes = _nodes_of(model.model, quantized_layers(denoiser))
    config = (
        HQQWeightOnlyQuantConfig(block_size=block, bits=4)
        if algorithm == "hqq"
        else DefaultWeightOnlyQuantConfig(block_size=block, bits=4)
    )
    others = [node.name for node in model.nodes() if node.op_type == "MatMul" and node.name not in nodes]
    quantizer = MatMulNBitsQuantizer(model.model, nodes_to_exclude=others, algo_config=config)
    quantizer.process()
    folder.mkdir(parents=True, exist_ok=True)
    quantizer.model.save_model_to_file(str(folder / "model.onnx"))
    shutil.copy(source / "config.json", folder)
    graph = quantizer.model.model.graph
    sizes = {tensor.name: onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer}
    bits: dict[str, int] = {}
    for node in graph.node:
        made_of = next((name for name in nodes if node.name.startswith(f"{name}_Q")), None)
        if node.op_type == "MatMulNBits" and made_of is not None:
            bits[nodes[made_of]] = 8 * sum(sizes[name] for name in node.input[1:] if name in sizes)
    made = sum(node.op_type == "MatMulNBits" for node in graph.node)
    if set(bits) != set(nodes.values()) or made != len(bits):
        raise RuntimeError(f"ONNX Runtime quantized {made} products, expected those of {len(nodes)} layers")
    return bits


def _nodes_of(model: Any, layers: Mapping[str, nn.Linear]) -> dict[str, str]:
    """MatMul nodes of ``model`` by name, and the layer that each computes: told by equal weights."""
    import onnx

    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    wanted = {_content(linear.weight.detach().numpy().T): name for name, linear in layers.items()}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = wanted.get(_content(arrays[node.input[1]]))
            if name is not None:
                found[node.name] = name
    if missed := set(layers) - set(found.values()):
        raise InputError(f"{min(missed)}: no MatMul of the float ONNX file has its weight")
    return found


def _content(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, np.ascontiguousarray(array, dtype=np.float32).tobytes()


def bitsandbytes_4bit(denoiser: Denoiser, kind: str) -> tuple[nn.Module, dict[str, int]]:
    """``Linear4bit`` on the CPU, weight-only, computing in float32, blocks of 64 with float32 scales.

    Returns:
        the transformer, and bits of each layer's weight as its state_dict holds them.
    """
    import bitsandbytes
    import torch

    transformer = copy.deepcopy(denoiser.transformer)
    bits: dict[str, int] = {}
    for name, linear in quantized_layers(denoiser).items():
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.float32,
            compress_statistics=False,
            quant_type=kind,
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            linear.weight.detach().clone(),
            requires_grad=False,
            compress_statistics=False,
            quant_type=kind,
            module=layer,
        )
        layer.bias = linear.bias
        layer = layer.to("cpu")  # quantizes
        state = layer.state_dict()
        bits[name] = 8 * sum(t.numel() * t.element_size() for key, t in state.items() if key != "bias")
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, layer)
    return transformer, bits


def torchao_quantized(
    denoiser: Denoiser, kind: str, group: int | None = None
) -> tuple[nn.Module, dict[str, int]]:
    """``quantize_`` of torchao with the configuration of ``kind``.

    Returns:
        the transformer, and bits of each layer's weight: codes at the width of their type (an int4 that lies
        in int8 counts as 4), scales and zero points as they are.
    """
    import torch
    import torchao.quantization as ao

    def config() -> Any:
        if kind == "int4":
            return ao.Int4WeightOnlyConfig(group_size=group)
        if kind == "intx4":
            return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(group))
        if kind == "int8":
            return ao.Int8WeightOnlyConfig()
        if kind == "int8-dynamic":
            return ao.Int8DynamicActivationInt8WeightConfig()
        raise ValueError(f"torchao {kind}: no such configuration")

    transformer = copy.deepcopy(denoiser.transformer)
    names = frozenset(quantized_layers(denoiser))
    ao.quantize_(transformer, config(), filter_fn=lambda _, name: name in names)
    bits: dict[str, int] = {}
    for name in names:
        weight = transformer.get_submodule(name).weight
        parts, settings = weight.__tensor_flatten__()
        code_bits = {torch.int4: 4}.get(settings.get("target_dtype"), 8)
        bits[name] = sum(
            tensor.numel() * (code_bits if part == "qdata" else 8 * tensor.element_size())
            for part in parts
            if (tensor := getattr(weight, part)) is not None
        )
    return transformer, bits
