"""Of several scales for a group of weights, the one that rounding to nearest loses least under."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ditpress.compress.quantize.grid import Grid
from ditpress.kernels.cpu import isa
from ditpress.kernels.cpu.scales import run_best_scales

CHUNK = 1 << 16  # weights that callers give at a time: the temporaries stay in the second-level cache


def reciprocal(scale: Tensor) -> Tensor:
    """``1 / scale`` in float32, and 0 where the scale is 0: such a group holds zeros."""
    scale = scale.float()
    return torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)


def best_scales(
    groups: Tensor, scales: Tensor, grid: Grid, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scale s of least ``sum_i importance (s v(w / s) - w)²``, v the nearest of the first table's values.

    On the C++ kernels where they were built.

    Args:
        groups: float32 [..., g].
        scales: what is tried, float32 [..., C]; 0 stands for no quotient but 0.
        grid: of the format.
        importance: float32 [G, g] with ``groups`` [N, G, g]; None: all 1.

    Returns:
        ``(scale, error)``, float32 [...]; of equal errors the first. A group whose errors are all beyond
        float32 keeps its first scale, with an infinite error.
    """
    shape = groups.shape[:-1]
    groups, scales = groups.reshape(-1, groups.shape[-1]), scales.reshape(-1, scales.shape[-1])
    if isa() == "reference":
        best, error = _in_turn(groups, scales, grid, importance)
    else:
        halves = None if grid.uniform else grid.value_of_half
        best, error = run_best_scales(groups, scales, grid.low, grid.high, halves, importance)
    return scales.gather(1, best.unsqueeze(1)).view(shape), error.view(shape)


def _in_turn(groups: Tensor, scales: Tensor, grid: Grid, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """The index of the best of ``scales`` [R, C] for ``groups`` [R, g], int64 [R], and its error."""
    weights = groups.t().contiguous()  # [g, R]: the scales then run along the fast axis, whatever the group
    if importance is not None:
        importance = importance.repeat(len(groups) // len(importance), 1).t().contiguous()
    # One buffer for all: fresh pages cost more than the arithmetic.
    scratch = torch.empty_like(weights)
    best = torch.zeros(len(groups), dtype=torch.int64)
    least = torch.full((len(groups),), math.inf)
    for index, scale in enumerate(scales.unbind(dim=1)):
        torch.mul(weights, reciprocal(scale), out=scratch)
        errors = grid.nearest_(scratch).mul_(scale).sub_(weights).square_()
        error = (errors if importance is None else errors.mul_(importance)).sum(dim=0)
        better = error < least
        least = torch.where(better, error, least)
        best[better] = index
    return best, least
