"""The definition of the op ``ditpress::qlinear``, in plain torch on any device.

x is first rounded as :mod:`ditpress.kernels.activations` defines it: to whole numbers q with scales a. All
float steps after that are float32 and their order is fixed, so that every kernel gives the same bits. For a
row of q, an output n and its G groups of K/G weights:

    acc_g = sum_{k in g} q_k * codebook[code_nk]                          (integers, exact)

    "int8", one a per row:
    f = 0;  for g in order: f = fma(float32(acc_g), float32(scale_ng), f)
    y = fma(f, a, bias_n)                                                 (no bias: 0)

    "int4", "uint4", "fp4-e2m1", one a_g per row and group:
    f = 0;  for g in order: f = fma(float32(acc_g) * a_g, float32(scale_ng), f)
    y = f + bias_n

    "fp8-e4m3", one a per row; q = 2**14 d_0 + 2**7 d_1 + d_2 with d_0 = rint(q / 2**14), d_1 = rint of what
    is left / 2**7, and d_2 the rest; each digit is multiplied as with "int8":
    f_p = 0;  for g in order: f_p = fma(float32(acc_pg), float32(scale_ng), f_p)
    y_p = f_p * (a * 2**(14 - 7 p));  y = (y_0 + (y_1 + y_2)) + bias_n

A row with a NaN or an infinity has a scale that is NaN: its whole result is NaN. With activation "none" the
products x * codebook are summed group by group, in any order; kernels may round x to 2**-24 of its row's amax
first. There too a row with a NaN or an infinity gives NaN.

Where a codebook has several tables of 16 entries, ``table`` names one for every output n, and codes count
from its first entry.

With ``fold_scales``, activation "int8" and G > 1 the weights and scales are first replaced by those of
:mod:`ditpress.kernels.folding`, one group a channel; in all other cases it changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.kernels.activations import DIGITS, PER_GROUP, quantize_activations, split_digits
from ditpress.kernels.arguments import TABLE_ENTRIES, check_table_values, code_entries, folds
from ditpress.kernels.folding import fold_scales as fold
from ditpress.kernels.packing import unpack

_CHUNK = 2**22  # elements of the largest temporary tensor: bounds the memory, not the result


def dequantize(
    codes: Tensor, scale: Tensor, codebook: Tensor, in_features: int, table: Tensor | None = None
) -> Tensor:
    """The weight that the codes stand for, float32 ``[N, K]`` (K = in_features)."""
    out_features, groups = scale.shape
    values = _values(codes, codebook, table, in_features).view(out_features, groups, in_features // groups)
    return (values * scale.float().unsqueeze(-1)).view(out_features, in_features)


def folded_weight(
    codes: Tensor, scale: Tensor, codebook: Tensor, in_features: int, table: Tensor | None = None
) -> Tensor:
    """The weight that a layer with folded scales multiplies by, float32 ``[N, K]``."""
    w8, s1 = fold(_values(codes, codebook, table, in_features), scale, codebook, table)
    return w8.float() * s1


def qlinear_reference(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool = False,
    table: Tensor | None = None,
) -> Tensor:
    """See :func:`ditpress.kernels.qlinear.qlinear`; arguments are taken as checked, but numbers in table."""
    check_table_values(table, codebook)
    in_features, out_features = x.shape[-1], codes.shape[0]
    rows = x.reshape(-1, in_features)
    y = torch.empty((rows.shape[0], out_features), dtype=torch.float32, device=x.device)
    row_step = max(1, _CHUNK // max(in_features, min(out_features, 1024)))
    column_step = max(1, min(_CHUNK // in_features, 1024))
    for first in range(0, rows.shape[0], row_step):
        block = rows[first : first + row_step]
        a: Tensor | None = None
        if activation == "none":
            block = torch.where(block.isfinite().all(dim=1, keepdim=True), block, torch.nan)
        else:
            block, a = quantize_activations(block, activation, in_features // scale.shape[1])
        for n in range(0, out_features, column_step):
            part = slice(n, n + column_step)
            own = None if table is None else table[part]
            weights, factors = _values(codes[part], codebook, own, in_features), scale[part].float()
            if folds(scale, activation, fold_scales):
                w8, factors = fold(weights, factors, codebook, own)
                weights = w8.float()
            y[first : first + row_step, part] = _product(
                block, a, weights, factors, 0.0 if bias is None else bias[part], activation
            )
    return y.view(*x.shape[:-1], out_features)


def _product(
    x: Tensor, a: Tensor | None, weights: Tensor, scale: Tensor, bias: Tensor | float, activation: str
) -> Tensor:
    """``y`` of some columns: x ``[M, K]``, whole numbers if there is a scale ``a``, weights ``[n, K]``."""
    if a is None:
        return _accumulate(x, weights, scale, exact=False) + bias
    if activation in PER_GROUP:
        return _accumulate(x, weights, scale, exact=True, a=a) + bias
    if activation == "fp8-e4m3":
        first, second, third = (
            _accumulate(digit, weights, scale, exact=True) * (a * weight)
            for digit, weight in zip(split_digits(x), DIGITS, strict=True)
        )
        return (first + (second + third)) + bias
    return _fma(_accumulate(x, weights, scale, exact=True), a, bias)


def _accumulate(x: Tensor, weights: Tensor, scale: Tensor, exact: bool, a: Tensor | None = None) -> Tensor:
    """``sum_g scale[:, g] * a[:, g] * (x_g @ weights_g.T)``: x ``[M, K]``, a ``[M, G]``, scale ``[n, G]``."""
    group = x.shape[1] // scale.shape[1]
    # Sums of whole numbers are exact in float32 while no partial sum can pass 2**24.
    wide = exact and group * 127 * 128 > 2**24
    total = torch.zeros((x.shape[0], weights.shape[0]), dtype=torch.float32, device=x.device)
    for g in range(scale.shape[1]):
        part = slice(g * group, (g + 1) * group)
        left, right = x[:, part], weights[:, part]
        product = (left.double() @ right.double().T).float() if wide else left @ right.T
        if a is not None:
            product = product * a[:, g : g + 1]
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


def _values(codes: Tensor, codebook: Tensor, table: Tensor | None, in_features: int) -> Tensor:
    """Codebook values of packed codes, float32 ``[n, K]``."""
    index = unpack(codes, code_entries(codebook, table), in_features // codebook.shape[1]).int()
    if table is not None:
        index += TABLE_ENTRIES * table.int().unsqueeze(1)
    return codebook.float()[index].view(codes.shape[0], in_features)
