"""Scales of a row that differ by powers of two only, so that FP4 weights become E4M3 by adding to exponents.

ZeroQuant-FP (Wu, Yao & He 2023, "ZeroQuant-FP: A Leap Forward in LLMs Post-Training W4A8 Quantization Using
Floating-Point Formats", section 3, method M2): every row keeps one real scale, its largest S_max, and group i
gets ``S_max / 2^ceil(log2(S_max / S_i))``. The real scale is applied after the product; before it a weight is
an E2M1 number times a power of two, which E4M3 holds exactly while it is in range.

Pure mathematics, tensors in and tensors out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.compress.quantize.fp4 import column_weights
from ditpress.compress.quantize.grid import grid_of
from ditpress.compress.quantize.scales import CHUNK, best_scales
from ditpress.errors import InputError
from ditpress.kernels.formats import Format, get_format

LOWEST, HIGHEST = -8, 6
"""E2M1 x 2^k is exact in E4M3 for k in this range: 0.5 * 2^-8 = 2^-9 is E4M3's smallest number and every E2M1
number is a multiple of 0.5 with two significant bits; 6 * 2^6 = 384 is below its largest, 448."""

SPAN = HIGHEST - LOWEST  # largest exponent of a ratio within a row

ROW_STEPS = 8  # real scales of a row that are tried, from its largest down by less than one octave


def constrained(scale: Tensor) -> bool:
    """Whether rows have several scales [N, G] that, zeros aside, differ by powers of two only: these must not
    be changed one by one."""
    if scale.shape[1] == 1:
        return False
    mantissa = torch.frexp(scale.float()).mantissa
    least = torch.where(scale == 0, torch.inf, mantissa).amin(dim=1)
    return bool((least == mantissa.amax(dim=1))[(scale != 0).any(dim=1)].all())


def constrain(scale: Tensor) -> Tensor:
    """The scales of ZeroQuant-FP's M2: ``S_max / 2^ceil(log2(S_max / S_i))``, at most the scale itself.

    Args:
        scale: float16 or float32 [N, G], 0 or more; 0 is a group of zeros and stays.

    Returns:
        The same dtype and shape. Ratios reach up to ``2^SPAN``, less where the dtype could not hold the
        quotient exactly; what lies beyond gets the last one.

    Raises:
        InputError: a negative scale (E2M1 needs none).
    """
    if bool((scale < 0).any()):
        raise InputError("scales in powers of two: a scale is negative, expected 0 or more, as of fp4-e2m1")
    wide = scale.double()
    largest = wide.amax(dim=1, keepdim=True)
    used = wide > 0
    # frexp: ratio = m 2^e with m in [1/2, 1), so its ceil(log2) is e, and e - 1 where m is 1/2: exact.
    ratio = torch.where(used, largest / wide.clamp(min=1e-300), 1.0)
    mantissa, exponent = torch.frexp(ratio)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return _divided(largest, exponent, scale.dtype).masked_fill_(~used, 0.0)


def search(
    weight: Tensor,
    scale: Tensor,
    format: Format | None = None,
    second_moment: Tensor | None = None,
    name: str = "weight",
) -> Tensor:
    """Scales in powers of two of least squared error: the real scale of a row and the exponents together.

    For each of ``ROW_STEPS`` real scales, from the row's largest down to just above half of it, every group
    takes the best of the three powers of two around its own scale; the row takes the best real scale. (Half
    the largest would give the same scales again.) What M2 gives is among the candidates.

    Args:
        weight: float32 [N, G, g].
        scale: the free scales, float16 or float32 [N, G], 0 or more.
        format: one table; None: fp4-e2m1.
        second_moment: see :func:`ditpress.compress.quantize.fp4.fit`.
        name: the layer, for errors.

    Returns:
        As :func:`constrain`.

    Raises:
        InputError: as :func:`constrain`.
    """
    grid = grid_of(get_format("fp4-e2m1") if format is None else format)
    importance = column_weights(second_moment, weight.shape[1:], name)
    best = constrain(scale)
    step = max(1, CHUNK // max(1, weight[0].numel() if len(weight) else 1))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        groups, free = weight[part], scale[part].double()
        _, error = best_scales(groups, best[part].float().unsqueeze(2), grid, importance)
        best_error = error.double().sum(dim=1)
        used = free > 0
        for index in range(ROW_STEPS):
            real = free.amax(dim=1, keepdim=True) * 2.0 ** (-index / ROW_STEPS)
            real = real.to(scale.dtype).double()
            wanted = torch.where(used, real / free.clamp(min=1e-300), 1.0).log2().round().int()
            tried = [
                _divided(real, wanted + offset, scale.dtype).masked_fill_(~used, 0.0) for offset in (-1, 0, 1)
            ]
            candidate, error = best_scales(groups, torch.stack(tried, dim=2).float(), grid, importance)
            total = error.double().sum(dim=1)
            better = total < best_error
            best[part] = torch.where(better[:, None], candidate.to(scale.dtype), best[part])
            best_error = torch.where(better, total, best_error)
    return best


def _divided(real: Tensor, exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """``real`` [N, 1] over ``2^exponent`` [N, G], with exponents from 0 to the largest that stays exact."""
    limit = torch.zeros_like(real, dtype=torch.int32)
    for power in range(1, SPAN + 1):
        quotient = real * 2.0**-power
        limit += (limit == power - 1) & (quotient.to(dtype).double() == quotient)
    exponent = torch.minimum(exponent.clamp(min=0), limit)
    return (real * torch.exp2(-exponent.double())).to(dtype)
