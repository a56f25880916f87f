"""Tiny random DiTs of every family, built in code."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn

from ditpress.load import PixelDiTPipeline

CLASSES = 5


def randomize(model: nn.Module, seed: int = 0) -> Any:
    """Weights N(0, 0.1²) everywhere, biases and tables too: nothing is zero, nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval().requires_grad_(False)


def tiny_dit(seed: int = 0, channels: int = 1, tied: bool = True, **config: Any) -> DiTTransformer2DModel:
    model = DiTTransformer2DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "in_channels": channels,
            "out_channels": channels,
            "sample_size": 8,
            "patch_size": 4,
            "num_embeds_ada_norm": CLASSES,
        }
        | config
    )
    randomize(model, seed)
    if tied:  # equal tensors in separate modules, as diffusers stores them
        state = model.transformer_blocks[0].norm1.emb.state_dict()
        for block in model.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(state)
    return model


def tiny_pipeline(seed: int = 0, **config: Any) -> PixelDiTPipeline:
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")
    return PixelDiTPipeline(transformer=tiny_dit(seed, **config), scheduler=scheduler)


def dit_inputs(model: DiTTransformer2DModel, batch: int = 3, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = model.config.sample_size
    return {
        "hidden_states": torch.randn(batch, model.config.in_channels, size, size, generator=generator),
        "timestep": torch.tensor([999, 500, 3])[:batch],
        "class_labels": torch.arange(batch),
    }


def tiny_pixart() -> tuple[nn.Module, dict[str, Any]]:
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "timestep": torch.tensor([10, 700]),
    }
    return randomize(model), inputs


def tiny_sd3() -> tuple[nn.Module, dict[str, Any]]:
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(1,),
        qk_norm="rms_norm",
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([10, 700]),
    }
    return randomize(model), inputs


def tiny_flux() -> tuple[nn.Module, dict[str, Any]]:
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(2, 9, 4),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([0.01, 0.7]),
        "img_ids": torch.randn(9, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return randomize(model), inputs
