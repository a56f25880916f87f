"""The op ``torch.ops.ditpress.qlinear_fused``: a low-bit linear and what a block puts around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditpress.kernels.arguments import (
    LinearArguments,
    check_bias,
    check_epilogue,
    check_input,
    check_prologue,
)
from ditpress.kernels.cpu.weights import Fusion, packed_weight
from ditpress.kernels.reference_fused import qlinear_fused_reference

_library = torch.library.Library("ditpress", "FRAGMENT")
_library.define(
    "qlinear_fused(Tensor x, Tensor codes, Tensor scale, Tensor codebook, Tensor? bias, str activation, "
    "bool fold_scales, Tensor? table, Tensor? shift, Tensor? modulation, float epsilon, bool gelu, "
    "Tensor? gate, Tensor? residual) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def qlinear_fused(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool = False,
    *,
    table: Tensor | None = None,
    shift: Tensor | None = None,
    modulation: Tensor | None = None,
    epsilon: float = 1e-6,
    gelu: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`~ditpress.kernels.qlinear.qlinear` with optional steps before and after it, in this order:

    1. ``x = layer_norm(x) * (1 + modulation) + shift`` where both are given (no affine in the norm)
    2. ``y = qlinear(x, codes, scale, codebook, bias, activation, fold_scales, table)``
    3. ``y = gelu(y)`` in the tanh form, with ``gelu``
    4. ``y = gate * y + residual`` where both are given

    Args:
        x: float32 ``[B, ..., K]``; one dimension is enough where nothing is per sample.
        codes, scale, codebook, bias, activation, fold_scales, table: as in ``qlinear``.
        shift, modulation: float32 ``[B, 1, K]`` or ``[B, K]``, a row per sample (B = 1: for all), or None.
        epsilon: of the layer norm.
        gelu: not together with ``gate``.
        gate: float32 ``[B, 1, N]`` or ``[B, N]``, or None.
        residual: float32 ``[B, ..., N]``, or None.

    Returns:
        float32 ``[B, ..., N]``. :mod:`ditpress.kernels.reference_fused` defines it.

    Raises:
        InputError: a tensor of another shape or type, one of a pair alone, or ``gelu`` with ``gate``.
    """
    return torch.ops.ditpress.qlinear_fused(
        x,
        codes,
        scale,
        codebook,
        bias,
        activation,
        fold_scales,
        table,
        shift,
        modulation,
        epsilon,
        gelu,
        gate,
        residual,
    )


def _split(x: Tensor, arguments: tuple[Any, ...]) -> tuple[LinearArguments, Fusion]:
    """The arguments behind x; raises InputError unless the weight-independent ones fit ``x``."""
    count = len(LinearArguments._fields)
    linear, around = LinearArguments(*arguments[:count]), Fusion(*arguments[count:])
    check_input(x)
    check_prologue(x, around.shift, around.modulation, around.epsilon)
    return linear, around


def _check(x: Tensor, linear: LinearArguments, around: Fusion) -> None:
    linear.check(x)
    check_epilogue(x, linear.codes.shape[0], around.gelu, around.gate, around.residual)


def _default(x: Tensor, *arguments: Any) -> Tensor:
    _check(x, *_split(x, arguments))
    return qlinear_fused_reference(x, *arguments)


def _cpu(x: Tensor, *arguments: Any) -> Tensor:
    linear, around = _split(x, arguments)
    weight = packed_weight(x.shape[-1], linear)
    if weight is None:
        return _default(x, *arguments)
    check_bias(linear.bias, weight.out_features)
    check_epilogue(x, weight.out_features, around.gelu, around.gate, around.residual)
    return weight.run(x, linear.bias, around)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    linear, around = _split(x, arguments)
    _check(x, linear, around)
    return x.new_empty((*x.shape[:-1], linear.codes.shape[0]))


_library.impl("qlinear_fused", _default, "CompositeExplicitAutograd")
_library.impl("qlinear_fused", _cpu, "CPU")
torch.library.register_fake("ditpress::qlinear_fused", _fake, lib=_library)
