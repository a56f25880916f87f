"""DiTs of the published sizes with random weights: for speed and memory, not for pictures."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from ditpress.errors import InputError

# Layers, hidden size, heads: Peebles & Xie, "Scalable Diffusion Models with Transformers", table 1.
_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
_PATCHES = (2, 4, 8)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    f"DiT-{size}/{patch}": {
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": hidden // heads,
        "patch_size": patch,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 32,
        "num_embeds_ada_norm": 1000,
    }
    for size, (layers, hidden, heads) in _SIZES.items()
    for patch in _PATCHES
}


def architecture(name: str) -> dict[str, Any]:
    """The configuration of ``name``, as in "DiT-XL/2". Raises InputError for an unknown one."""
    if name not in ARCHITECTURES:
        raise InputError(f"random:{name}: unknown architecture, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def random_dit(config: dict[str, Any], seed: int = 0) -> DiTTransformer2DModel:
    """A ``DiTTransformer2DModel`` in float32 with random weights, its embedders shared by all blocks.

    Linears are Xavier-uniform (Glorot & Bengio 2010) with zero bias, embeddings and the modulation are
    N(0, 0.02²): unlike DiT's own zero initialisation the gates are open, so that every layer has an
    effect on the output. Memory is allocated once per tensor that is kept.
    """
    with init_empty_weights():
        model = DiTTransformer2DModel(**config)
    embedder = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb = embedder
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            value = _initial(module, key, f"{name}.{key}", parameter.shape, generator)
            setattr(module, key, nn.Parameter(value))
    return model.eval().requires_grad_(False)


def _initial(module: nn.Module, key: str, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    value = torch.empty(shape)
    if key == "bias":
        return value.zero_()
    if isinstance(module, nn.Embedding) or name.endswith("norm1.linear.weight"):
        return value.normal_(0.0, 0.02, generator=generator)
    fan_out, fan_in = shape[0], math.prod(shape[1:])
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return value.uniform_(-bound, bound, generator=generator)
