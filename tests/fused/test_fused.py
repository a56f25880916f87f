"""Blocks on the fused ops: the numbers of the unfused ones, the ops really called, and every way back."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny_dit import dit_inputs, tiny_dit, tiny_pipeline, tiny_pixart, tiny_sd3
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ditpress
from ditpress.export.onnx import export_transformer
from ditpress.fused import FusedAttnProcessor, FusedBlock, FusedFeedForward, fuse, is_fused, unfuse, unfused
from ditpress.kernels.random_weights import random_linear
from ditpress.kernels.transforms import ChannelScale
from ditpress.kernels.wrap import LowRankLinear, TransformedLinear
from ditpress.load import Role, anatomy_of, load_denoiser, save_pipeline
from ditpress.load.modules import replace_module
from ditpress.load.widths import resize

LOW_BIT = (Role.QKV, Role.ATTENTION_OUT, Role.MLP_IN, Role.MLP_OUT)


class Calls(TorchDispatchMode):
    """Counts the ops of ditpress; with ``gelu`` and the like for what a fused one was asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ditpress":
            name = func.__name__.removesuffix(".default")
            self.count[name] += 1
            if name == "qlinear_fused":
                self.count["modulated"] += args[9] is not None
                self.count["gelu"] += args[11]
                self.count["gated"] += args[12] is not None
        return func(*args, **(kwargs or {}))


def compress(model: Any, activation: str = "int8", roles: tuple[Role, ...] = LOW_BIT) -> Any:
    """Low-bit layers with random codes in the places of these roles."""
    for seed, (name, role) in enumerate(anatomy_of(model).linears(model).items()):
        if role in roles:
            old = model.get_submodule(name)
            new = random_linear(
                old.in_features, old.out_features, "int8", old.in_features, activation, seed=seed
            )
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    return model


def low_bit_dit(**options: Any) -> tuple[Any, dict[str, Any]]:
    model = compress(tiny_dit(channels=4, patch_size=2), **options)
    return model, dit_inputs(model)


def low_bit_narrow(**options: Any) -> tuple[Any, dict[str, Any]]:
    """Heads and stream of different widths, neither that of the embeddings."""
    model = tiny_dit(channels=4, patch_size=2, num_attention_heads=4)
    resize(model, {"pos_embed": {"residual": 24}, "transformer_blocks.1.attn1": {"heads": 2, "head_dim": 8}})
    return compress(model, **options), dit_inputs(model)


def low_bit_pixart(masked: bool = True, **options: Any) -> tuple[Any, dict[str, Any]]:
    model, inputs = tiny_pixart()
    if masked:  # the second prompt is shorter than the first
        inputs["encoder_attention_mask"] = torch.tensor([[1.0] * 5, [1.0] * 2 + [0.0] * 3])
    return compress(model, **options), inputs


def run(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Counter[str]]:
    with Calls() as calls:
        y = model(**inputs, return_dict=False)[0]
    return y, calls.count


def psnr(a: Tensor, b: Tensor) -> float:
    mse = float((a.double() - b.double()).square().mean())
    return math.inf if mse == 0 else 10 * math.log10(float(b.max() - b.min()) ** 2 / mse)


@pytest.mark.parametrize("activation", ["int8", "none"])
@pytest.mark.parametrize("build", [low_bit_dit, low_bit_narrow, low_bit_pixart])
@torch.no_grad()
def test_fused_gives_the_numbers_of_the_unfused(build: Callable[..., Any], activation: str) -> None:
    model, inputs = build(activation=activation)
    expected, before = run(model, inputs)
    assert set(before) == {"qlinear"}
    fuse(model)
    y, after = run(model, inputs)
    assert psnr(y, expected) > 50
    blocks, attentions = 2, 2 if build is low_bit_pixart else 1
    assert after["qlinear"] == 0
    assert after["attention"] == blocks * attentions
    assert after["qlinear_fused"] == blocks * (4 * attentions + 2) == before["qlinear"]
    assert after["gelu"] == blocks
    assert after["gated"] == blocks * (attentions + 1)
    assert after["modulated"] == blocks * (4 if activation == "int8" else 1)


@pytest.mark.parametrize("roles", [(Role.QKV,), (Role.ATTENTION_OUT, Role.MLP_OUT), (Role.MLP_IN,)])
@torch.no_grad()
def test_float_linears_may_stand_between(roles: tuple[Role, ...]) -> None:
    model, inputs = low_bit_dit(roles=roles)
    expected, _ = run(model, inputs)
    fuse(model)
    y, calls = run(model, inputs)
    assert psnr(y, expected) > 50
    assert calls["qlinear_fused"] + calls["qlinear"] >= 2


@torch.no_grad()
def test_joint_attention_stays_and_feed_forwards_are_fused() -> None:
    model, inputs = tiny_sd3()
    compress(model)
    expected, _ = run(model, inputs)
    processors = {name: type(p) for name, p in model.attn_processors.items()}
    fuse(model)
    y, calls = run(model, inputs)
    assert {name: type(p) for name, p in model.attn_processors.items()} == processors
    assert psnr(y, expected) > 50
    assert calls["gelu"] >= 3


@torch.no_grad()
def test_unfuse_restores_the_classes_of_diffusers() -> None:
    model, inputs = low_bit_dit()
    expected, _ = run(model, inputs)
    names = list(model.state_dict())
    assert fuse(model) == 6  # block, attention and feed-forward of two blocks
    assert fuse(model) == 0
    assert is_fused(model)
    block = model.transformer_blocks[0]
    assert (type(block), type(block.ff)) == (FusedBlock, FusedFeedForward)
    assert isinstance(block.attn1.processor, FusedAttnProcessor)
    assert list(model.state_dict()) == names
    with unfused(model):
        assert not is_fused(model)
    assert is_fused(model)
    assert unfuse(model) == 6
    assert not is_fused(model)
    assert (type(block), type(block.ff)) == (BasicTransformerBlock, FeedForward)
    assert type(block.attn1.processor) is AttnProcessor2_0
    assert torch.equal(run(model, inputs)[0], expected)
    with unfused(model):
        pass
    assert not is_fused(model)


def test_a_float_model_is_left_alone() -> None:
    assert fuse(tiny_dit()) == 0


def test_gradients_run_on_the_plain_path() -> None:
    model, inputs = low_bit_dit(roles=(Role.MLP_OUT,))
    with torch.no_grad():
        expected, _ = run(model, inputs)
    fuse(model)
    y, calls = run(model, inputs)
    assert "qlinear_fused" not in calls
    assert torch.equal(y, expected)


@torch.no_grad()
def test_train_mode_runs_on_the_plain_path() -> None:
    model, inputs = low_bit_dit()
    fuse(model)
    for block in model.transformer_blocks:
        block.train()
    # The label dropout of train mode draws at random: the block alone is what is asked here.
    assert "qlinear_fused" not in run(model, inputs)[1]


@torch.no_grad()
def test_other_types_run_on_the_plain_path() -> None:
    model, inputs = low_bit_dit()
    model.to(torch.bfloat16)
    inputs["hidden_states"] = inputs["hidden_states"].bfloat16()
    expected, _ = run(model, inputs)
    fuse(model)
    y, calls = run(model, inputs)
    assert "qlinear_fused" not in calls
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


@torch.no_grad()
def test_autocast_runs_on_the_plain_path() -> None:
    model, inputs = low_bit_dit()
    fuse(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert "qlinear_fused" not in run(model, inputs)[1]


@pytest.mark.parametrize(
    "name", ["attn1.to_k", "attn1.to_out.0", "attn1", "ff", "ff.net.0", "ff.net.0.proj", "ff.net.2", "norm3"]
)
@torch.no_grad()
def test_watched_modules_are_called(name: str) -> None:
    model, inputs = low_bit_dit()
    expected, _ = run(model, inputs)
    fuse(model)
    seen = []
    watched = model.transformer_blocks[1].get_submodule(name)
    handle = watched.register_forward_pre_hook(lambda module, args: seen.append(module))
    y, _ = run(model, inputs)
    assert seen == [watched]
    assert psnr(y, expected) > 50
    handle.remove()
    run(model, inputs)
    assert len(seen) == 1


@torch.no_grad()
def test_another_processor_is_respected() -> None:
    model, inputs = low_bit_dit()
    fuse(model)
    model.transformer_blocks[0].attn1.set_processor(AttnProcessor2_0())
    assert run(model, inputs)[1]["attention"] == 1


@torch.no_grad()
def test_a_copy_is_fused_by_itself() -> None:
    model, inputs = low_bit_dit()
    fuse(model)
    other = copy.deepcopy(model)
    unfuse(model)
    assert is_fused(other)
    assert run(other, inputs)[1]["attention"] == 2


@torch.inference_mode()
def test_load_fuses_unless_told_otherwise(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    compress(pipeline.transformer)
    save_pipeline(load_denoiser(pipeline), tmp_path / "model")
    loaded, plain = ditpress.load(tmp_path / "model"), ditpress.load(tmp_path / "model", fuse=False)
    assert is_fused(loaded.transformer)
    assert not is_fused(plain.transformer)
    draw = {"class_labels": [1, 2], "num_inference_steps": 2, "output_type": "pt"}
    images = [
        p(**draw, generator=[torch.Generator().manual_seed(i) for i in (1, 2)]).images
        for p in (loaded, plain)
    ]
    assert psnr(images[0], images[1]) > 45
    loaded.save_pretrained(tmp_path / "again")
    file = Path("transformer") / "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()
    # Stages watch modules that fused blocks pass by.
    assert not is_fused(load_denoiser(loaded).transformer)


def test_a_fused_model_exports_as_the_unfused_one(tmp_path: Path) -> None:
    model, inputs = low_bit_dit()
    call = inputs | {"return_dict": False}
    export_transformer(model, tmp_path / "plain", [call])
    fuse(model)
    path, _ = export_transformer(model, tmp_path / "fused", [call])
    assert is_fused(model)
    assert path.read_bytes() == (tmp_path / "plain" / path.name).read_bytes()


@torch.no_grad()
def test_wrapped_linears_are_left_to_diffusers() -> None:
    model, inputs = low_bit_dit()
    expected, before = run(model, inputs)
    block = model.transformer_blocks[0]
    branch = (nn.Linear(64, 2, bias=False), nn.Linear(2, 16, bias=False))
    for part in branch:
        nn.init.zeros_(part.weight)
    one = ChannelScale(torch.ones(16))
    for old, new in (
        (block.attn1.to_q, TransformedLinear(one, block.attn1.to_q)),
        (block.ff.net[2], LowRankLinear(block.ff.net[2], *branch)),
    ):
        replace_module(model, old, new)
    assert torch.equal(run(model, inputs)[0], expected)
    fuse(model)
    y, after = run(model, inputs)
    assert psnr(y, expected) > 50
    # the attention and the feed-forward of the first block run as they are, the second block fused
    assert after == {
        "qlinear": 6,
        "qlinear_fused": 6,
        "attention": 1,
        "modulated": 4,
        "gelu": 1,
        "gated": 2,
    }
    assert before["qlinear"] == 12
