"""The definition of the activation formats: how a low-bit linear rounds its input at run time.

"none"
    x stays float32.
"int8"
    Whole numbers in [-127, 127], one scale per row (a token): a = amax / 127, amax = max_k |x_k|;
    q_k = clamp(rint(x_k * (127 / amax)), -127, 127).
"int4", "uint4", "fp4-e2m1"
    One scale per row and group of weights that share a scale: a = amax / L and
    q_k = nearest(x_k * (L / amax)), with the amax of the group. "int4": L = 7, whole numbers in [-7, 7].
    "uint4": L = 15, whole numbers in [0, 15], for inputs that have no negative values (those count as 0; amax
    is the largest value). "fp4-e2m1": L = 12, 0, 1, 2, 3, 4, 6, 8, 12 and their negatives, the values of E2M1
    in half units (OCP Microscaling Formats 1.0, section 5.3.3).
"fp8-e4m3"
    v_k = x_k * (448 / amax) per row, rounded to E4M3 (Micikevicius et al. 2022, "FP8 Formats for Deep
    Learning", table 1): four significant bits, the smallest step 2**-9, the largest value 448. q_k = 512 v_k
    is a whole number, a = amax / (448 * 512).

All steps are float32 in the order written, nearest and rint take the even one of two equally near (for E2M1
and E4M3: the one with an even mantissa). A group (or row) whose amax is below 2**-120, with "fp8-e4m3" below
2**-118, counts as zero, since L / amax could overflow: q = 0, a = 0. One with a NaN or an infinity of either
sign has no scale: q = 0, a = NaN.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ditpress.errors import InputError

Activation = Literal["int8", "none", "int4", "uint4", "fp4-e2m1", "fp8-e4m3"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)

LEVELS = {"int8": 127.0, "int4": 7.0, "uint4": 15.0, "fp4-e2m1": 12.0, "fp8-e4m3": 448.0 * 512.0}
"""The largest whole number of each format that rounds."""

PER_GROUP = ("int4", "uint4", "fp4-e2m1")
"""The formats with a scale for every group of weights; the others have one for the row."""

DIGITS = (2.0**14, 2.0**7, 1.0)
"""Weights of the three int8 digits that a whole number of "fp8-e4m3" is split into."""

TINY = dict.fromkeys(LEVELS, 2.0**-120) | {"fp8-e4m3": 2.0**-118}
"""Groups with a largest magnitude below this count as zero."""


def quantize_activations(x: Tensor, activation: str, group_size: int) -> tuple[Tensor, Tensor]:
    """Round every row of ``x`` to an activation format.

    Args:
        x: float32 ``[M, K]``.
        activation: a format that rounds: any but "none".
        group_size: a divisor of K; values that share a scale where the format has one per group.

    Returns:
        ``(q, a)``: whole numbers as float32 ``[M, K]``, and float32 scales, ``[M, K / group_size]`` for the
        formats of PER_GROUP, else ``[M, 1]``; x is about ``q * a``.

    Raises:
        InputError: an unknown format, "none", or a group size that does not divide K.
    """
    if activation not in LEVELS:
        raise InputError(f"activation format is {activation!r}, expected one of {', '.join(LEVELS)}")
    rows, width = x.shape
    if activation not in PER_GROUP:
        group_size = width
    if group_size < 1 or width % group_size:
        raise InputError(f"activation group size {group_size} does not divide in_features={width}")
    groups = x.reshape(rows, width // group_size, group_size)
    finite = groups.abs().amax(dim=2, keepdim=True).isfinite()
    if activation == "uint4":
        groups = groups.clamp(min=0.0)
    amax = groups.abs().amax(dim=2, keepdim=True)
    used = finite & (amax >= TINY[activation])
    divisor = torch.where(used, amax, 1.0)
    # Tensors, because torch turns a quotient with a Python number into a product with a rounded reciprocal:
    # always when the number is above, and on GPUs when it is below.
    level = LEVELS[activation]
    q = _round(torch.where(used, groups, 0.0), divisor, activation).clamp_(-level, level)
    a = torch.where(used, amax / torch.full_like(divisor, level), 0.0)
    a = torch.where(finite, a, torch.nan)
    return q.view(rows, width), a.squeeze(2)


def fake_quantize(x: Tensor, activation: str, group_size: int) -> Tensor:
    """What an activation format leaves of ``x`` ``[..., K]``: ``q * a`` in float32; "none": ``x`` itself."""
    if activation == "none":
        return x
    q, a = quantize_activations(x.reshape(-1, x.shape[-1]), activation, group_size)
    return (q.view(q.shape[0], a.shape[1], -1) * a.unsqueeze(2)).view(x.shape)


def split_digits(q: Tensor) -> list[Tensor]:
    """Whole numbers of "fp8-e4m3" as digits in [-64, 64]: ``q = sum_p DIGITS[p] * digit_p``, exactly."""
    digits = []
    for weight in DIGITS:
        digits.append((q / weight).round())  # powers of two: exact
        q = q - digits[-1] * weight
    return digits


def _round(x: Tensor, amax: Tensor, activation: str) -> Tensor:
    """``nearest(x * (L / amax))``."""
    if activation == "fp8-e4m3":
        v = x * (torch.full_like(amax, 448.0) / amax) * 512.0
        exponent = torch.frexp(v).exponent  # |v| in [2**(exponent - 1), 2**exponent)
        return _to_multiple(v, torch.ldexp(torch.ones_like(v), (exponent - 4).clamp(min=0)))
    v = x * (torch.full_like(amax, LEVELS[activation]) / amax)
    if activation != "fp4-e2m1":
        return v.round()
    size = v.abs()
    return _to_multiple(v, torch.where(size < 4.0, 1.0, torch.where(size < 8.0, 2.0, 4.0)))


def _to_multiple(v: Tensor, step: Tensor) -> Tensor:
    """The nearest multiple of a power of two, the even one of two equally near."""
    return (v / step).round() * step
