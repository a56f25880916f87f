"""The op ``torch.ops.ditpress.qlinear``: a linear layer on low-bit weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.kernels.arguments import check_bias, check_input, check_weight
from ditpress.kernels.cpu.weights import packed_weight
from ditpress.kernels.reference import qlinear_reference

_library = torch.library.Library("ditpress", "FRAGMENT")
_library.define(
    "qlinear(Tensor x, Tensor codes, Tensor scale, Tensor codebook, Tensor? bias, str activation, "
    "bool fold_scales=False) -> Tensor",
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
) -> Tensor:
    """``y = x Wᵀ + bias`` with ``W[n, k] = scale[n, k // group] * codebook[code[n, k // d]][k % d]``.

    Args:
        x: float32 ``[..., K]``.
        codes: uint8 ``[N, packed_width(K / d, entries)]``, packed by :func:`ditpress.kernels.packing.pack`.
        scale: float32 or float16 ``[N, G]``; group = K / G weights share one scale.
        codebook: int8 ``[entries, d]``, 2, 3, 4, 16, 64 or 256 entries.
        bias: float32 ``[N]`` or None.
        activation: "int8" (x is quantized per row, symmetric) or "none" (x stays float32).
        fold_scales: with "int8" and G > 1, multiply group scales into 8-bit weights first
            (:mod:`ditpress.kernels.folding`): faster, one more rounding of W. Else without effect.

    Returns:
        float32 ``[..., N]``. :mod:`ditpress.kernels.reference` defines it to the bit.
    """
    return torch.ops.ditpress.qlinear(x, codes, scale, codebook, bias, activation, fold_scales)


def _default(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool = False,
) -> Tensor:
    check_input(x)
    check_weight(x.shape[-1], codes, scale, codebook, activation, fold_scales)
    check_bias(bias, codes.shape[0])
    return qlinear_reference(x, codes, scale, codebook, bias, activation, fold_scales)


def _fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool = False,
) -> Tensor:
    check_input(x)
    check_weight(x.shape[-1], codes, scale, codebook, activation, fold_scales)
    check_bias(bias, codes.shape[0])
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _cpu(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool = False,
) -> Tensor:
    check_input(x)
    weight = packed_weight(x.shape[-1], codes, scale, codebook, activation, fold_scales)
    if weight is None:
        return _default(x, codes, scale, codebook, bias, activation, fold_scales)
    check_bias(bias, weight.out_features)
    return weight.run(x, bias)


_library.impl("qlinear", _default, "CompositeExplicitAutograd")
_library.impl("qlinear", _cpu, "CPU")
torch.library.register_fake("ditpress::qlinear", _fake, lib=_library)
