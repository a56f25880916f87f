"""Which linears read what a GELU gives."""

from __future__ import annotations

from diffusers.models.activations import GELU
from torch import nn

from ditpress.load.anatomy import plain_name


def follows_gelu(transformer: nn.Module, name: str) -> bool:
    """Whether the linear ``name`` is the second one of diffusers' ``FeedForward`` with a plain GELU.

    Gated variants (GEGLU, SwiGLU) give values far below zero, and so do Flux's single blocks, whose linear
    reads attention and MLP side by side.
    """
    container, _, place = plain_name(name).rpartition(".")
    if place != "2":
        return False
    parts = transformer.get_submodule(container)
    return isinstance(parts, nn.ModuleList) and isinstance(parts[0], GELU)
