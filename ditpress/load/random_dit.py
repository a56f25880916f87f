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

    Linears have the bound of Xavier-uniform (Glorot & Bengio 2010) and zero bias; embeddings and the
    modulation have DiT's standard deviation of 0.02. Unlike DiT's own zero initialisation the gates are open,
    so that every layer has an effect on the output. Memory is allocated once per tensor that is kept.
    """
    with init_empty_weights():
        model = DiTTransformer2DModel(**config)
    embedder = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb = embedder
    stream = _UniformStream(seed)
    for name, module in model.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape)
            if key == "bias":
                value.zero_()
            else:
                small = isinstance(module, nn.Embedding) or name.endswith("norm1.linear")
                stream.fill(value, 0.02 * math.sqrt(3.0) if small else _xavier_bound(parameter.shape))
            setattr(module, key, nn.Parameter(value))
    return model.eval().requires_grad_(False)


def _xavier_bound(shape: torch.Size) -> float:
    return math.sqrt(6.0 / (shape[0] + math.prod(shape[1:])))


class _UniformStream:
    """Uniform numbers from a pool that is read round and round: a generator takes seconds for 700 million.

    The length of the pool is prime, so that no row of a matrix falls on another one.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.empty(4_194_301).uniform_(-1.0, 1.0, generator=generator)
        self._position = 0

    def fill(self, value: Tensor, bound: float) -> None:
        """Fill ``value`` with the next numbers, scaled to -bound..bound."""
        flat, done = value.view(-1), 0
        while done < len(flat):
            piece = self._pool[self._position : self._position + len(flat) - done]
            flat[done : done + len(piece)] = piece
            done += len(piece)
            self._position = (self._position + len(piece)) % len(self._pool)
        value.mul_(bound)
