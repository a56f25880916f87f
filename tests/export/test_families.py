"""Other families export by the same path: keyword arguments, nested ones and constants included."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from export_models import quantize

from ditpress.export.onnx import export_transformer
from ditpress.export.session import OnnxTransformer


def pixart():
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=36,
        cross_attention_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=128,
        patch_size=2,
        caption_channels=32,
        use_additional_conditions=True,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 6, 32),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
        "timestep": torch.tensor([500, 500]),
        "added_cond_kwargs": {"resolution": torch.full((2, 2), 64.0), "aspect_ratio": torch.ones(2, 1)},
    }


def sd3():
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 6, 32),
        "pooled_projections": torch.randn(2, 32),
        "joint_attention_kwargs": None,
    }


def flux():
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    places = torch.zeros(16, 3)
    places[:, 1], places[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    return model, {
        "hidden_states": torch.randn(2, 16, 4),
        "timestep": torch.tensor([0.5, 0.5]),
        "guidance": torch.full([2], 3.5),
        "pooled_projections": torch.randn(2, 32),
        "encoder_hidden_states": torch.randn(2, 6, 32),
        "txt_ids": torch.zeros(6, 3),
        "img_ids": places,
        "joint_attention_kwargs": {},
    }


@pytest.mark.parametrize("family", [pixart, sd3, flux])
def test_family_in_int8(family, tmp_path):
    torch.manual_seed(0)
    model, call = family()
    model.eval().requires_grad_(False)
    quantize(model, "int8", None, "int8")
    path, parity = export_transformer(model, tmp_path / "transformer", [call], fuse=False)
    assert parity.relative <= 1e-5
    with torch.no_grad():
        expected = model(**call).sample
    drawn = OnnxTransformer(path)(**call).sample
    assert (drawn - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())
