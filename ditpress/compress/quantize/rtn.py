"""Round to nearest: the scale of every group by the best clip in squared error (of ternary tables: by the
exact optimum), then the nearest entry.

Pure mathematics, tensors in and tensors out. ``W[n, g, i] ~ scale[n, g] * codebook[code[n, g, i]]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ditpress.compress.quantize.grid import Grid, grid_of
from ditpress.compress.quantize.ternary import ternary_scale
from ditpress.errors import InputError
from ditpress.kernels.formats import Format

# Clip ratios tried for every group: the table's largest entry stands for ratio * (largest |w| of the group).
# Long tails of a whole output channel can pay for clipping most of the range; below a fifth it never pays.
CLIP_RATIOS = tuple(round(1.0 - 0.02 * step, 2) for step in range(41))

CHUNK = 1 << 16  # weights at a time: the temporaries stay in the second-level cache


class _Grid:
    """The values of a scalar table in ascending order, and for any x the nearest of them.

    All values are whole numbers, so the borders between neighbours are multiples of 1/2: ``floor(2 x)``
    decides the nearest value, and a small lookup table replaces the search. Halfway goes up.
    """

    def __init__(self, format: Format) -> None:
        check_format(format)
        # -128 has no positive counterpart in int8, and kernels negate entries: it stays unused.
        entries: dict[int, int] = {}
        for code, value in enumerate(format.codebook_tensor().flatten().tolist()):
            if value >= -127:
                entries.setdefault(value, code)  # of +0 and -0 the first, as of ternary-2bit's two zeros
        values = sorted(entries)
        self.low, self.high = values[0], values[-1]
        self.largest = max(-self.low, self.high)
        # The side that a group's largest weight is scaled to; the other side may reach further (int4: -8).
        self.anchor = min(-self.low, self.high) if min(-self.low, self.high) > 0 else self.largest
        self.ternary = values == [-1, 0, 1]
        self.uniform = values == list(range(self.low, self.high + 1))
        self.values = torch.tensor(values, dtype=torch.float32)
        self.codes = torch.tensor([entries[value] for value in values], dtype=torch.uint8)
        halves = torch.arange(2 * self.low, 2 * self.high + 1, dtype=torch.float32) / 2
        borders = (self.values[1:] + self.values[:-1]) / 2
        self.index_of_half = torch.bucketize(halves, borders, right=True)
        self.value_of_half = self.values[self.index_of_half]

    def nearest_(self, x: Tensor) -> Tensor:
        """Replace every entry of the contiguous float32 ``x`` by the nearest value of the table."""
        if self.uniform:
            return x.round_().clamp_(self.low, self.high)
        torch.index_select(self.value_of_half, 0, self._half_(x), out=x.view(-1))
        return x

    def codes_of_nearest(self, x: Tensor) -> Tensor:
        """The code of the nearest value for every entry of ``x``, uint8; ``x`` is used as scratch."""
        if self.uniform:
            index = x.round_().clamp_(self.low, self.high).sub_(self.low).long().view(-1)
        else:
            index = self.index_of_half[self._half_(x)]
        return self.codes[index].view(x.shape)

    def _half_(self, x: Tensor) -> Tensor:
        """Places of ``x`` in the tables by halves, int64 [x.numel()]."""
        return x.mul_(2).floor_().clamp_(2 * self.low, 2 * self.high).sub_(2 * self.low).long().view(-1)


@lru_cache(maxsize=32)
def _grid(format: Format) -> _Grid:
    return _Grid(format)


def check_format(format: Format) -> None:
    """Raise InputError unless round to nearest can take ``format``: single values from a fixed table."""
    if format.vector_length != 1 or format.codebook is None:
        raise InputError(
            f"format {format.name} holds vectors of {format.vector_length} weights; round to nearest "
            "takes formats of single values, such as int4 or fp4-e2m1"
        )
    if format.tables > 1:
        raise InputError(
            f"format {format.name} has {format.tables} tables; round to nearest takes formats of one, "
            "such as int4 or fp4-e2m1"
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


def reciprocal(scale: Tensor) -> Tensor:
    """``1 / scale`` in float32, and 0 where the scale is 0: such a group holds zeros."""
    scale = scale.float()
    return torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)


def _search(groups: Tensor, absmax: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Best scale, ``dtype`` [R], for ``groups`` float32 [R, g]."""
    # The least scale that is stored exactly and whose reciprocal is finite in float32.
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    if grid.ternary:
        scale = ternary_scale(groups).clamp_(min=smallest)
        return scale.masked_fill_(absmax == 0, 0.0).to(dtype)
    weights = groups.t().contiguous()  # [g, R]: the scales then run along the fast axis, whatever the group
    scratch = torch.empty_like(
        weights
    )  # one buffer for all ratios: fresh pages cost more than the arithmetic
    sign = torch.ones_like(absmax)
    if (
        -grid.low > grid.high
    ):  # int4 reaches -8 but only 7: a negative scale puts the largest weight on the long side
        sign[weights.amax(dim=0) > -weights.amin(dim=0)] = -1.0
    best_error = torch.full_like(absmax, math.inf)
    best_scale = torch.zeros_like(absmax)
    for ratio in CLIP_RATIOS:
        scale = (absmax * (ratio / grid.anchor)).to(dtype).float().clamp_(min=smallest).mul_(sign)
        torch.mul(weights, 1.0 / scale, out=scratch)
        error = grid.nearest_(scratch).mul_(scale).sub_(weights).square_().sum(dim=0)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale.masked_fill_(absmax == 0, 0.0).to(dtype)
