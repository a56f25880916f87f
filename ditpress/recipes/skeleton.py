"""A model without its numbers: what a stage would make of it, at no memory."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from ditpress.compress import Stage
from ditpress.compress.quantize.stage import replace_module
from ditpress.kernels.linear import Activation, QuantizedLinear
from ditpress.load.denoiser import Denoiser


def skeleton(module: nn.Module) -> nn.Module:
    """A deep copy of ``module`` on the meta device: same structure, shapes, dtypes and sharing."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return cast(nn.Module, copy.deepcopy(module, memo))


def planned(denoiser: Denoiser, stages: tuple[Stage, ...]) -> nn.Module:
    """The skeleton of what ``stages`` will make of the denoiser's transformer.

    Raises:
        InputError: a stage cannot take this model.
    """
    transformer = skeleton(denoiser.transformer)
    for stage in stages:
        for name, layer in stage.layer_formats(denoiser).items():
            linear = transformer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            empty = QuantizedLinear.empty(
                linear.in_features,
                linear.out_features,
                layer.format,
                layer.group_size,
                cast(Activation, layer.activation),
                bias=linear.bias is not None,
                device="meta",
            )
            replace_module(transformer, linear, empty)
    return transformer
