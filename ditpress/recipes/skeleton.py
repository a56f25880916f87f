"""A model without its numbers: what a stage would make of it, at no memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ditpress.compress import Stage
from ditpress.load.denoiser import Denoiser


def skeleton(module: nn.Module) -> nn.Module:
    """A deep copy of ``module``: same structure, shapes, dtypes, sharing; each tensor one number, repeated.

    A float32 tensor that float16 holds exactly, and is therefore stored in half the bytes, stays one.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(_stand_in(parameter), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = _stand_in(buffer)
    return cast(nn.Module, copy.deepcopy(module, memo))


def _stand_in(tensor: Tensor) -> Tensor:
    """A tensor like ``tensor`` in all that decides how it is stored, without memory of its own."""
    halved = tensor.dtype != torch.float32 or torch.equal(tensor.half().float(), tensor)
    value = 0 if halved else 0.1  # 0.1 is not exact in float16
    return torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)


def planned(denoiser: Denoiser, stages: Iterable[Stage]) -> nn.Module:
    """The skeleton of what ``stages`` will make of the denoiser's transformer.

    Raises:
        InputError: a stage cannot take this model.
    """
    transformer = skeleton(denoiser.transformer)
    for stage in stages:
        stage.plan(denoiser, transformer)
    return transformer
