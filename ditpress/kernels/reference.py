"""The definition of the op ``ditpress::qlinear``, in plain torch on any device.

With activation "int8" all float steps are float32 and their order is fixed, so that every kernel gives the
same bits. For a row x of K values, an output n and its G groups of K/G weights:

    amax = max_k |x_k|;  a = amax / 127
    q_k = clamp(rint(x_k * (127 / amax)), -127, 127)                      (rint: half to even)
    acc_g = sum_{k in g} q_k * codebook[code_nk]                          (integers, exact)
    f = 0;  for g in order: f = fma(float32(acc_g), float32(scale_ng), f)
    y = fma(f, a, bias_n)                                                 (no bias: 0)

A row whose amax is below 2**-120 counts as zero (127 / amax would overflow): q = 0, a = 0. A row with a NaN
or an infinity has no scale: its whole result is NaN. With activation "none" the products x * codebook are
summed group by group, in any order; kernels may round x to 2**-24 of its row's amax first. There too a row
with a NaN or an infinity gives NaN.

With ``fold_scales``, activation "int8" and G > 1 the weights and scales are first replaced by those of
:mod:`ditpress.kernels.folding`, one group a channel; in all other cases it changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.kernels.arguments import folds
from ditpress.kernels.folding import fold_scales as fold
from ditpress.kernels.packing import unpack

TINY = 2.0**-120
"""Rows with a largest magnitude below this count as zero."""

_CHUNK = 2**22  # elements of the largest temporary tensor: bounds the memory, not the result


def dequantize(codes: Tensor, scale: Tensor, codebook: Tensor, in_features: int) -> Tensor:
    """The weight that the codes stand for, float32 ``[N, K]`` (K = in_features)."""
    out_features, groups = scale.shape
    values = _values(codes, codebook, in_features).view(out_features, groups, in_features // groups)
    return (values * scale.float().unsqueeze(-1)).view(out_features, in_features)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize every row to int8 by its own largest magnitude.

    Args:
        x: float32 ``[M, K]``.

    Returns:
        ``(q, a)``: whole numbers in [-127, 127] as float32 ``[M, K]``, and float32 scales ``[M, 1]``.
    """
    amax = x.abs().amax(dim=1, keepdim=True)
    finite = amax.isfinite()
    used = finite & (amax >= TINY)
    divisor = torch.where(used, amax, 1.0)
    # A tensor, because torch turns a quotient with a Python number into a product with a rounded reciprocal:
    # always when the number is above, and on GPUs when it is below.
    full = torch.full_like(divisor, 127.0)
    q = (torch.where(used, x, 0.0) * (full / divisor)).round().clamp_(-127.0, 127.0)
    a = torch.where(used, amax / full, 0.0)
    return q, torch.where(finite, a, torch.nan)


def folded_weight(codes: Tensor, scale: Tensor, codebook: Tensor, in_features: int) -> Tensor:
    """The weight that a layer with folded scales multiplies by, float32 ``[N, K]``."""
    w8, s1 = fold(_values(codes, codebook, in_features), scale, codebook)
    return w8.float() * s1


def qlinear_reference(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool = False,
) -> Tensor:
    """See :func:`ditpress.kernels.qlinear.qlinear`; arguments are taken as checked."""
    in_features, out_features = x.shape[-1], codes.shape[0]
    rows = x.reshape(-1, in_features)
    y = torch.empty((rows.shape[0], out_features), dtype=torch.float32, device=x.device)
    row_step = max(1, _CHUNK // max(in_features, min(out_features, 1024)))
    column_step = max(1, min(_CHUNK // in_features, 1024))
    for first in range(0, rows.shape[0], row_step):
        block = rows[first : first + row_step]
        a: Tensor | None = None
        if activation == "int8":
            block, a = quantize_rows(block)
        else:
            block = torch.where(block.isfinite().all(dim=1, keepdim=True), block, torch.nan)
        for n in range(0, out_features, column_step):
            part = slice(n, n + column_step)
            weights, factors = _values(codes[part], codebook, in_features), scale[part].float()
            if folds(scale, activation, fold_scales):
                w8, factors = fold(weights, factors, codebook)
                weights = w8.float()
            addend = 0.0 if bias is None else bias[part]
            total = _accumulate(block, weights, factors, exact=a is not None)
            y[first : first + row_step, part] = total + addend if a is None else _fma(total, a, addend)
    return y.view(*x.shape[:-1], out_features)


def _accumulate(x: Tensor, weights: Tensor, scale: Tensor, exact: bool) -> Tensor:
    """``sum_g scale[:, g] * (x_g @ weights_g.T)`` of x ``[M, K]``, weights ``[n, K]``, scale ``[n, G]``."""
    group = x.shape[1] // scale.shape[1]
    # Sums of whole numbers are exact in float32 while no partial sum can pass 2**24.
    wide = exact and group * 127 * 128 > 2**24
    total = torch.zeros((x.shape[0], weights.shape[0]), dtype=torch.float32, device=x.device)
    for g in range(scale.shape[1]):
        part = slice(g * group, (g + 1) * group)
        left, right = x[:, part], weights[:, part]
        product = (left.double() @ right.double().T).float() if wide else left @ right.T
        total = _fma(product, scale[:, g], total) if exact else total + product * scale[:, g]
    return total


def _fma(a: Tensor, b: Tensor, c: Tensor | float) -> Tensor:
    """``a * b + c`` for float32 with one rounding.

    The product is exact in float64; the sum is rounded to float64 and then to float32, which differs from a
    true fused multiply-add only where the float64 sum is inexact and lies on a midpoint of float32 (about one
    case in 2**29).
    """
    addend = c.double() if isinstance(c, Tensor) else c
    return (a.double() * b.double() + addend).float()


def _values(codes: Tensor, codebook: Tensor, in_features: int) -> Tensor:
    """Codebook values of packed codes, float32 ``[n, K]``."""
    entries, length = codebook.shape
    index = unpack(codes, entries, in_features // length).int()
    return codebook.float()[index].view(codes.shape[0], in_features)
