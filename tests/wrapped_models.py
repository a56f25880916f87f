"""Every wrapper put around the linears of a model, so that the model computes what it did."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ditpress.kernels.hadamard import hadamard_factors
from ditpress.kernels.transforms import ChannelScale, Hadamard, Shift, Transform, rotate_weight
from ditpress.kernels.wrap import LowRankLinear, NormedLinear, TransformedLinear
from ditpress.load.modules import replace_module

RANK = 3


def rotate(model: nn.Module, names: Iterable[str], transform: Hadamard) -> None:
    """``transform`` before each of the linears, which make up for it; all share the one module."""
    for name in names:
        linear = model.get_submodule(name)
        linear.weight.copy_(rotate_weight(linear.weight, transform))
        replace_module(model, linear, TransformedLinear(transform, linear))


def scale_channels(model: nn.Module, name: str, generator: torch.Generator) -> None:
    linear = model.get_submodule(name)
    factors = torch.rand(linear.in_features, generator=generator) * 3 + 0.2
    linear.weight.copy_(linear.weight.double() / factors.double())
    replace_module(model, linear, TransformedLinear(ChannelScale(factors), linear))


def shift_inputs(model: nn.Module, name: str, value: float) -> None:
    linear = model.get_submodule(name)
    transform = Shift(value)
    linear.bias.sub_((transform.value.double() * linear.weight.double().sum(dim=1)).to(linear.bias.dtype))
    replace_module(model, linear, TransformedLinear(transform, linear))


def split_off_branch(model: nn.Module, name: str, generator: torch.Generator) -> None:
    """A random branch, which the linear's weight is less by."""
    linear = model.get_submodule(name)
    down = nn.Linear(linear.in_features, RANK, bias=False).requires_grad_(False)
    up = nn.Linear(RANK, linear.out_features, bias=False).requires_grad_(False)
    for part in (down, up):
        part.weight.normal_(std=0.1, generator=generator)
    linear.weight.copy_(linear.weight.double() - up.weight.double() @ down.weight.double())
    replace_module(model, linear, LowRankLinear(linear, down, up))


def hadamard_for(in_features: int, generator: torch.Generator) -> Hadamard:
    return Hadamard.random(hadamard_factors(in_features), in_features, generator)


def norm_outputs(model: nn.Module, name: str, generator: torch.Generator) -> None:
    """This one changes the function."""
    linear = model.get_submodule(name)
    gain = torch.rand(linear.out_features, generator=generator)
    replace_module(model, linear, NormedLinear(linear, gain, 1e-5))


def transform_of(model: nn.Module, name: str) -> Transform:
    wrapped = model.get_submodule(name)
    assert isinstance(wrapped, TransformedLinear)
    return wrapped.transform


def wrap_dit(model: nn.Module, seed: int = 0) -> nn.Module:
    """One rotation for q, k and v of each block, the others before and beside the feed-forward, nested."""
    generator = torch.Generator().manual_seed(seed)
    for index, block in enumerate(model.transformer_blocks):
        prefix = f"transformer_blocks.{index}."
        readers = [f"{prefix}attn1.to_{part}" for part in "qkv"]
        rotate(model, readers, hadamard_for(block.attn1.to_q.in_features, generator))
        split_off_branch(model, f"{prefix}ff.net.0.proj", generator)
        last = f"{prefix}ff.net.2"
        scale_channels(model, last, generator)
        rotate(model, [f"{last}.linear"], hadamard_for(block.ff.net[2].in_features, generator))
        shift_inputs(model, f"{last}.linear.linear", 0.17)
        split_off_branch(model, f"{last}.linear.linear.linear", generator)
    return model
