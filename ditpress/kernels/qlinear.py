"""The op ``torch.ops.ditpress.qlinear``: a linear layer on low-bit weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditpress.kernels.arguments import LinearArguments, check_bias, check_input
from ditpress.kernels.cpu.weights import packed_weight
from ditpress.kernels.reference import qlinear_reference

_library = torch.library.Library("ditpress", "FRAGMENT")
_library.define(
    "qlinear(Tensor x, Tensor codes, Tensor scale, Tensor codebook, Tensor? bias, str activation, "
    "bool fold_scales=False, Tensor? table=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def qlinear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool = False,
    table: Tensor | None = None,
) -> Tensor:
    """``y = x Wᵀ + bias`` with ``W[n, k] = scale[n, k // group] * codebook[code[n, k // d]][k % d]``.

    Args:
        x: float32 ``[..., K]``.
        codes: uint8 ``[N, packed_width(K / d, entries)]``, packed by :func:`ditpress.kernels.packing.pack`.
        scale: float32 or float16 ``[N, G]``; group = K / G weights share one scale.
        codebook: int8 ``[entries, d]``, 2, 3, 4, 16, 64 or 256 entries; with ``table`` several tables of 16
            numbers, ``[tables * 16, 1]``.
        bias: float32 ``[N]`` or None.
        activation: how x is rounded first, a format of :mod:`ditpress.kernels.activations`; "none": not.
        fold_scales: with "int8" and G > 1, multiply group scales into 8-bit weights first
            (:mod:`ditpress.kernels.folding`): faster, one more rounding of W. Else without effect.
        table: uint8 ``[N]``, which table of the codebook the codes of a row mean:
            ``codebook[16 * table[n] + code]``; None: there is one table.

    Returns:
        float32 ``[..., N]``. :mod:`ditpress.kernels.reference` defines it to the bit.
    """
    return torch.ops.ditpress.qlinear(x, codes, scale, codebook, bias, activation, fold_scales, table)


def _default(x: Tensor, *arguments: Any) -> Tensor:
    given = LinearArguments(*arguments)
    given.check(x)
    return qlinear_reference(x, *given)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    given = LinearArguments(*arguments)
    given.check(x)
    return x.new_empty((*x.shape[:-1], given.codes.shape[0]))


def _cpu(x: Tensor, *arguments: Any) -> Tensor:
    given = LinearArguments(*arguments)
    check_input(x)
    weight = packed_weight(x.shape[-1], given)
    if weight is None:
        return _default(x, *arguments)
    check_bias(given.bias, weight.out_features)
    return weight.run(x, given.bias)


_library.impl("qlinear", _default, "CompositeExplicitAutograd")
_library.impl("qlinear", _cpu, "CPU")
torch.library.register_fake("ditpress::qlinear", _fake, lib=_library)
