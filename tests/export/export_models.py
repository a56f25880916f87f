"""Tiny transformers with low-bit layers, made in code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from ditpress.export.session import kernels_run
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack

HIDDEN = 64


def low_bit(linear: nn.Linear, format: str, group: int, activation: str) -> QuantizedLinear:
    """Random codes, scales of a sensible size: export must carry any numbers, not good ones."""
    fmt = get_format(format)
    out_features, in_features = linear.weight.shape
    codes = torch.randint(0, fmt.entries, (out_features, in_features), dtype=torch.uint8)
    scale = (torch.rand(out_features, in_features // group) + 0.5) * 0.05 / fmt.max_abs
    return QuantizedLinear(
        pack(codes, fmt.entries),
        scale if group == in_features else scale.half(),
        fmt,
        in_features,
        bias=None if linear.bias is None else linear.bias.detach(),
        activation=activation,
        table=(torch.arange(out_features) % fmt.tables).to(torch.uint8) if fmt.tables > 1 else None,
    )


def quantize(transformer: nn.Module, format: str, group: int | None, activation: str) -> nn.Module:
    """Every linear of the blocks; modulation int8 weight-only, embedders stay float."""
    for name, module in list(transformer.named_modules()):
        if not isinstance(module, nn.Linear) or "transformer_blocks" not in name or ".emb." in name:
            continue
        modulation = ".norm1." in name
        layer = low_bit(
            module,
            "int8" if modulation else format,
            module.in_features if modulation or group is None else group,
            "none" if modulation else activation,
        )
        parent, leaf = name.rsplit(".", 1)
        setattr(transformer.get_submodule(parent), leaf, layer)
    return transformer


def make_dit(layers: int = 2) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=HIDDEN // 2,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return model.eval().requires_grad_(False)


def make_calls(batch: int = 2) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "hidden_states": torch.randn(batch, 1, 8, 8, generator=generator),
            "timestep": torch.full((1,), step).expand(batch),
            "class_labels": torch.arange(batch) % 11,
            "return_dict": False,
        }
        for step in (900, 500, 20)
    ]


def make_quantized(format: str = "int4", group: int | None = 32, activation: str = "int8") -> Any:
    return quantize(make_dit(), format, group, activation)


LIBRARIES_FUSED = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not kernels_run(), reason="no kernels run on this machine")),
]
