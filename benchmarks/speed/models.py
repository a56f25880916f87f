"""The torch models of the workloads, with random weights, and one call of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ditpress.load.random_dit import architecture, random_dit
from speed.workloads import TOKEN_ROWS

BATCH = 2  # one image under classifier-free guidance
BLOCKS = 2  # of the families of which only blocks are timed
QUICK_LAYERS = 2


class OneLinear(nn.Module):
    """A linear with the face of a transformer."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, hidden_states: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.linear(hidden_states),)


def build(name: str, quick: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The float32 model of a workload other than "linear", and the keyword arguments of one call.

    Args:
        name: of the workload.
        quick: with few blocks.
    """
    generator = torch.Generator().manual_seed(1)
    if name in ("dit-xl-256", "dit-xl-512"):
        return _dit_xl(64 if name == "dit-xl-512" else 32, quick, generator)
    torch.manual_seed(0)
    model, call = {"pixart-block": _pixart, "sd3-block": _sd3}[name](generator)
    return model.eval().requires_grad_(False), call


def build_linear(in_features: int, out_features: int) -> tuple[nn.Module, dict[str, Any]]:
    """One linear in float32 and a small call of it."""
    torch.manual_seed(0)
    model = OneLinear(in_features, out_features).eval().requires_grad_(False)
    return model, {"hidden_states": linear_input(in_features, 2 * TOKEN_ROWS), "return_dict": False}


def linear_input(in_features: int, rows: int) -> Tensor:
    """Normal numbers [rows / 8, 8, in_features]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows // TOKEN_ROWS, TOKEN_ROWS, in_features, generator=generator)


def _dit_xl(size: int, quick: bool, generator: torch.Generator) -> tuple[nn.Module, dict[str, Any]]:
    config = architecture("DiT-XL/2") | {"sample_size": size}
    if quick:
        config["num_layers"] = QUICK_LAYERS
    call = {
        "hidden_states": torch.randn(BATCH, 4, size, size, generator=generator),
        "timestep": torch.full((BATCH,), 500),
        "class_labels": torch.tensor([207, 1000]),  # a class, and the null class of guidance
        "return_dict": False,
    }
    return random_dit(config), call


def _pixart(generator: torch.Generator) -> tuple[nn.Module, dict[str, Any]]:
    """Widths of PixArt-alpha/PixArt-Sigma-XL-2-512-MS."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=BLOCKS,
        cross_attention_dim=1152,
        caption_channels=4096,
        sample_size=64,
        use_additional_conditions=False,
    )
    call = {
        "hidden_states": torch.randn(BATCH, 4, 64, 64, generator=generator),
        "encoder_hidden_states": torch.randn(BATCH, 300, 4096, generator=generator),
        "encoder_attention_mask": torch.ones(BATCH, 300),
        "timestep": torch.full((BATCH,), 500),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }
    return model, call


def _sd3(generator: torch.Generator) -> tuple[nn.Module, dict[str, Any]]:
    """Widths of stabilityai/stable-diffusion-3-medium, at 512x512."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=64,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=BLOCKS,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=64,  # enough for this size; the table of 192 is most of the file
    )
    call = {
        "hidden_states": torch.randn(BATCH, 16, 64, 64, generator=generator),
        "encoder_hidden_states": torch.randn(BATCH, 333, 4096, generator=generator),
        "pooled_projections": torch.randn(BATCH, 2048, generator=generator),
        "timestep": torch.full((BATCH,), 500.0),
        "return_dict": False,
    }
    return model, call
