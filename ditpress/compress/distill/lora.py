"""Low-rank updates beside linears, for a while: what training could change, at a small part of its cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def low_rank_updates(
    model: nn.Module, names: Sequence[str], rank: int, alpha: float, seed: int
) -> Iterator[list[nn.Parameter]]:
    """Inside, each of the linears gives ``W x + b + (alpha / rank) B A x``; yields all A and B.

    LoRA (Hu et al. 2022, section 4.1): A [rank, in] is random, B [out, rank] zero, so that nothing changes
    before they are trained. The weights themselves are never written to.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters: list[nn.Parameter] = []
    handles = []
    try:
        for name in names:
            linear = cast(nn.Linear, model.get_submodule(name))
            weight = linear.weight
            a = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
            down = nn.Parameter(a.to(weight.device), requires_grad=False)
            up = nn.Parameter(weight.new_zeros(linear.out_features, rank), requires_grad=False)
            parameters += [down, up]
            handles.append(linear.register_forward_hook(partial(_add, down, up, alpha / rank)))
        yield parameters
    finally:
        for handle in handles:
            handle.remove()


def _add(down: Tensor, up: Tensor, scale: float, linear: nn.Module, args: tuple, output: Any) -> Any:
    return output + scale * (args[0] @ down.T @ up.T)
