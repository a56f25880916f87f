"""Round to nearest: the scale of every group by the best clip in squared error (of ternary tables: by the
exact optimum), then the nearest entry.

Pure mathematics, tensors in and tensors out. ``W[n, g, i] ~ scale[n, g] * codebook[code[n, g, i]]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.compress.quantize.grid import Grid, grid_of
from ditpress.compress.quantize.scales import CHUNK, best_scales, reciprocal
from ditpress.compress.quantize.ternary import ternary_scale
from ditpress.errors import InputError
from ditpress.kernels.formats import Format

# Clip ratios tried for every group: the table's largest entry stands for ratio * (largest |w| of the group).
# Long tails of a whole output channel can pay for clipping most of the range; below a fifth it never pays.
CLIP_RATIOS = tuple(round(1.0 - 0.02 * step, 2) for step in range(41))


def check_group(columns: int, group_size: int, name: str) -> None:
    """Raise InputError unless ``group_size`` divides K = ``columns``; names the layer and groups that do."""
    if columns % group_size == 0:
        return
    fitting = [size for size in (16, 32, 48, 64, 72, 96, 128, 144, 192, 256) if columns % size == 0]
    choice = ", ".join(map(str, fitting)) or str(columns)
    raise InputError(
        f"{name}: K = {columns} is not divisible by the group {group_size}; use a group of {choice} or "
        '"channel", or skip this layer'
    )


def split_groups(weight: Tensor, group_size: int, name: str = "weight") -> Tensor:
    """``weight`` [N, K] as float32 [N, K // group_size, group_size].

    Raises:
        InputError: K is not a multiple of ``group_size``, or a weight is NaN or infinite; names the layer.
    """
    rows, columns = weight.shape
    check_group(columns, group_size, name)
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"{name} holds NaN or infinite values; give a checkpoint with finite weights")
    return weight.detach().float().reshape(rows, columns // group_size, group_size)


def search_scale(weight: Tensor, format: Format, dtype: torch.dtype, name: str = "weight") -> Tensor:
    """The scale of every group that gives the least squared error among the clips of ``CLIP_RATIOS``.

    A ternary table gets the best scale there is, by :mod:`ditpress.compress.quantize.ternary`.

    Args:
        weight: float32 [N, G, g].
        format: a format of single values.
        dtype: storage type of the scale; candidates are rounded to it before they are compared, so the
            choice is the best among what can be stored.
        name: the layer, for errors.

    Returns:
        scale, ``dtype`` [N, G]; 0 for a group of zeros; below 0 where a table that reaches further down than
        up (int4: -8..7) serves a group better upside down.

    Raises:
        InputError: a scale does not fit ``dtype``.
    """
    grid = grid_of(format)
    if grid.tables > 1:
        raise InputError(
            f"format {format.name} has {grid.tables} tables; this search takes formats of one: fp4-e2m1"
        )
    groups = weight.reshape(-1, weight.shape[-1])
    absmax = groups.abs().amax(dim=1)
    if absmax.numel() and float(absmax.max()) / grid.anchor > torch.finfo(dtype).max:
        raise InputError(
            f"{name}: weights up to {float(absmax.max()):.3g} need scales beyond {dtype}; "
            "use one scale per channel (group: channel) or skip this layer"
        )
    best = torch.empty(groups.shape[0], dtype=dtype)
    step = max(1, CHUNK // groups.shape[1])
    for start in range(0, groups.shape[0], step):
        best[start : start + step] = _search(
            groups[start : start + step], absmax[start : start + step], grid, dtype
        )
    return best.reshape(weight.shape[:-1])


def round_to_nearest(weight: Tensor, scale: Tensor, format: Format, table: Tensor | None = None) -> Tensor:
    """Codes of the nearest entries: uint8 [N, G, g] for ``weight`` float32 [N, G, g], ``scale`` [N, G].

    ``table``: of a format with several tables the one of every output row, whole numbers [N].
    """
    grid = grid_of(format)
    inverse = reciprocal(scale).unsqueeze(-1)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    step = max(1, CHUNK // (weight.shape[1] * weight.shape[2]))
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        codes[part] = grid.codes_of_nearest(
            weight[part] * inverse[part], None if table is None else table[part]
        )
    return codes


def nearest_values(weight: Tensor, scale: Tensor, format: Format, table: Tensor | None = None) -> Tensor:
    """The table entries that the codes of :func:`round_to_nearest` stand for: a fresh float32 [N, G, g].

    Arguments as there.
    """
    grid = grid_of(format)
    quotient = weight * reciprocal(scale).unsqueeze(-1)
    if grid.tables == 1:
        return grid.nearest_(quotient)
    return grid.values_of(grid.codes_of_nearest(quotient, table), table)


def _search(groups: Tensor, absmax: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Best scale, ``dtype`` [R], for ``groups`` float32 [R, g]."""
    # The least scale that is stored exactly and whose reciprocal is finite in float32.
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    if grid.ternary:
        scale = ternary_scale(groups).clamp_(min=smallest)
        return scale.masked_fill_(absmax == 0, 0.0).to(dtype)
    sign = torch.ones_like(absmax)
    if (
        -grid.low > grid.high
    ):  # int4 reaches -8 but only 7: a negative scale puts the largest weight on the long side
        sign[groups.amax(dim=1) > -groups.amin(dim=1)] = -1.0
    ratios = torch.tensor([ratio / grid.anchor for ratio in CLIP_RATIOS])
    tried = (absmax.unsqueeze(1) * ratios).to(dtype).float().clamp_(min=smallest).mul_(sign.unsqueeze(1))
    best, _ = best_scales(groups, tried, grid)
    return best.masked_fill_(absmax == 0, 0.0).to(dtype)
