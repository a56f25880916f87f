"""FP4 with a table per output channel: E2M1, E1M2 or E3M0, whichever serves the channel best.

HQ-DiT (Liu et al. 2024, "HQ-DiT: Efficient Diffusion Transformer with FP4 Hybrid Quantization") chooses the
format of a channel from the spread of its weights; LLM-FP4 (Liu et al., EMNLP 2023) searches where to clip.
In units of their smallest step the tables are 0 1 2 3 4 6 8 12, 0 ... 7 (uniform) and 0 1 2 4 ... 64.

Pure mathematics, tensors in and tensors out. ``W[n, g, i] ~ scale[n, g] * tables[table[n]][code[n, g, i]]``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ditpress.compress.quantize.grid import Grid, grid_of
from ditpress.compress.quantize.rtn import round_to_nearest
from ditpress.compress.quantize.scales import CHUNK, best_scales, reciprocal
from ditpress.errors import InputError
from ditpress.kernels.formats import FORMATS, Format, get_format

TABLES: tuple[Format, ...] = tuple(FORMATS[name] for name in ("fp4-e2m1", "fp4-e1m2", "fp4-e3m0"))
"""In the order of the format "fp4"."""

CLIP_RATIOS = tuple(round(1.2 - 0.04 * step, 2) for step in range(26))
"""Clips tried for every group, as shares of its largest weight. LLM-FP4 searches up to 1.2: of a grid whose
steps grow, it matters where between two steps the largest weight falls."""

REFITS = 2
"""Least-squares scales for the codes found, in turn with rounding again: what lies between two ratios."""

LOW_QUANTILE = 0.25
"""Of the magnitudes of a channel: the low end of HQ-DiT's indicator, since the least weight itself is next to
zero in every channel. For normal weights max / quartile is about 10, near E2M1's ratio of 12, the table with
the least error there; for uniform ones it is 4, near E1M2's 7."""

Choice = Literal["error", "indicator"]


def fit(
    weight: Tensor,
    dtype: torch.dtype,
    second_moment: Tensor | None = None,
    *,
    choice: Choice = "error",
    name: str = "weight",
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and tables of least squared error.

    Args:
        weight: finite float32 [N, G, g], K = G g.
        dtype: storage type of the scales; candidates are rounded to it before they are compared.
        second_moment: of the layer's inputs, [K, K]; its diagonal weighs the errors of the columns. None: all
            columns count alike.
        choice: "error" compares the errors that the three tables leave; "indicator" is HQ-DiT's, see
            :func:`indicator`, at a third of the time.
        name: the layer, for errors.

    Returns:
        codes uint8 [N, G, g]; scale, ``dtype`` [N, G], 0 for a group of zeros; table uint8 [N], an index into
        ``TABLES``. With equal errors the earlier table is taken.

    Raises:
        InputError: a scale does not fit ``dtype``, or a second moment of another size.
    """
    importance = column_weights(second_moment, weight.shape[1:], name)
    check_range(weight, min(grid_of(table).largest for table in TABLES), dtype, name)
    if choice == "indicator":
        table = indicator(weight)
        scale = torch.empty(weight.shape[:2], dtype=dtype)
        for index, format in enumerate(TABLES):
            rows = table == index
            scale[rows] = clip_search(weight[rows], format, dtype, importance)[0]
    else:
        found = [clip_search(weight, format, dtype, importance) for format in TABLES]
        errors = torch.stack([error.double().sum(dim=1) for _, error in found])
        table = errors.argmin(dim=0).to(torch.uint8)
        scale = torch.stack([scale for scale, _ in found])[table.long(), torch.arange(len(table))]
    return round_to_nearest(weight, scale, get_format("fp4"), table), scale, table


def indicator(weight: Tensor) -> Tensor:
    """The table whose largest value over its least positive one (12, 7, 64) is nearest, as a ratio, to the
    largest magnitude over the :data:`LOW_QUANTILE` of every channel of ``weight`` [N, G, g]; uint8 [N]."""
    sizes = weight.flatten(1).abs()
    # kthvalue, since torch.quantile refuses more than 2**24 numbers and sorts them all.
    low = sizes.kthvalue(max(1, math.ceil(LOW_QUANTILE * sizes.shape[1])), dim=1).values
    spread = (sizes.amax(dim=1).double() / low.double()).nan_to_num(nan=1.0, posinf=1e30)
    ratios = torch.tensor([float(grid_of(table).largest) for table in TABLES], dtype=torch.float64)
    return (spread.log()[:, None] - ratios.log()).abs().argmin(dim=1).to(torch.uint8)


def clip_search(
    weight: Tensor, format: Format, dtype: torch.dtype, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scale of every group by the best of :data:`CLIP_RATIOS`, then refitted to its codes.

    Args:
        weight: float32 [N, G, g].
        format: one symmetric table.
        dtype: see :func:`fit`.
        importance: weights of the squared errors, float32 [G, g]; None: all 1.

    Returns:
        scale, ``dtype`` [N, G], and the weighted squared error that it leaves, float32 [N, G].
    """
    grid = grid_of(format)
    scale = torch.empty(weight.shape[:2], dtype=dtype)
    error = torch.empty(weight.shape[:2])
    step = max(1, CHUNK // max(1, weight[0].numel() if len(weight) else 1))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        scale[part], error[part] = _search(weight[part], grid, dtype, importance)
    return scale, error


def column_weights(second_moment: Tensor | None, shape: torch.Size, name: str) -> Tensor | None:
    """The diagonal of ``second_moment`` [K, K] as float32 [G, g] with mean 1; None for None.

    Raises:
        InputError: not of size K = G g, or a diagonal with nothing above zero.
    """
    if second_moment is None:
        return None
    if second_moment.shape != (shape.numel(), shape.numel()):
        raise InputError(
            f"{name}: second moment of its inputs is {list(second_moment.shape)}, expected "
            f"[{shape.numel()}, {shape.numel()}]; collect it from this layer"
        )
    diagonal = second_moment.diagonal().double()
    if not bool(torch.isfinite(diagonal).all()) or not float(diagonal.sum()) > 0:
        raise InputError(f"{name}: its inputs are all zero, NaN or infinite during calibration; skip it")
    return (diagonal / diagonal.mean()).float().reshape(shape)


def check_range(weight: Tensor, largest: int, dtype: torch.dtype, name: str) -> None:
    """Raise InputError where a group of ``weight`` needs a scale beyond ``dtype``."""
    absmax = float(weight.abs().max()) if weight.numel() else 0.0
    if absmax * CLIP_RATIOS[0] / largest > torch.finfo(dtype).max:
        raise InputError(
            f"{name}: weights up to {absmax:.3g} need scales beyond {dtype}; "
            "use one scale per channel (group: channel) or skip this layer"
        )


def _search(
    groups: Tensor, grid: Grid, dtype: torch.dtype, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    absmax = groups.abs().amax(dim=2)
    # The least scale that is stored exactly and whose reciprocal is finite in float32.
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny

    def stored(scale: Tensor) -> Tensor:
        return scale.to(dtype).float().clamp_(min=smallest)

    ratios = torch.tensor([ratio / grid.largest for ratio in CLIP_RATIOS])
    scale, error = best_scales(groups, stored(absmax.unsqueeze(2) * ratios), grid, importance)
    for _ in range(REFITS):
        values = grid.nearest_(groups * reciprocal(scale).unsqueeze(-1))
        weighted = values if importance is None else values * importance
        square = (weighted * values).sum(dim=2)
        # Where every code is 0 any scale does as well: the one there is stays.
        refitted = (weighted * groups).sum(dim=2) / square.clamp(min=torch.finfo(torch.float32).tiny)
        refitted = stored(torch.where(square > 0, refitted, scale))
        scale, error = best_scales(groups, torch.stack((scale, refitted), dim=2), grid, importance)
    zero = absmax == 0
    return scale.masked_fill_(zero, 0.0).to(dtype), error.masked_fill_(zero, 0.0)
