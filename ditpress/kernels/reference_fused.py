"""The definition of the op ``ditpress::qlinear_fused``, in plain torch on any device.

A linear with what stands around it in a Diffusion Transformer: before it the layer norm with the shift and
the scale of the adaLN modulation (Peebles & Xie 2023, section 3.2), after it GELU (tanh form) or the gate and
the residual. The linear itself is exact as in :mod:`ditpress.kernels.reference`; the steps around it are
float32 in any order of sums, so that kernels agree up to rounding, not to the bit; their GELU may differ by
1.5e-5 * max(1, |y|), a small part of the int8 step that its result is rounded to next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ditpress.kernels.reference import qlinear_reference


def layer_norm_modulate(x: Tensor, shift: Tensor, modulation: Tensor, epsilon: float) -> Tensor:
    """``norm(x) * (1 + modulation) + shift``; the norm over K in two passes, without weights of its own.

    Args:
        x: float32 ``[B, ..., K]``.
        shift, modulation: float32 ``[B, 1, K]`` or ``[B, K]``, one row for a sample; one for all when B is 1.
        epsilon: added to the variance.
    """
    centred = x - x.sum(dim=-1, keepdim=True) / x.shape[-1]
    variance = centred.square().sum(dim=-1, keepdim=True) / x.shape[-1]
    normal = centred / torch.sqrt(variance + epsilon)
    return normal * (1.0 + _per_sample(modulation, x)) + _per_sample(shift, x)


def gelu_tanh(y: Tensor) -> Tensor:
    """``0.5 y (1 + tanh(sqrt(2/pi) (y + 0.044715 y**3)))``: Hendrycks & Gimpel 2016, section 2."""
    return 0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y * y * y)))


def qlinear_fused_reference(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    activation: str,
    fold_scales: bool,
    table: Tensor | None,
    shift: Tensor | None,
    modulation: Tensor | None,
    epsilon: float,
    gelu: bool,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """See :func:`ditpress.kernels.qlinear_fused.qlinear_fused`; arguments are taken as checked."""
    if shift is not None and modulation is not None:
        x = layer_norm_modulate(x, shift, modulation, epsilon)
    y = qlinear_reference(x, codes, scale, codebook, bias, activation, fold_scales, table)
    if gelu:
        y = gelu_tanh(y)
    if gate is not None and residual is not None:
        y = _per_sample(gate, y) * y + residual
    return y


def _per_sample(value: Tensor, x: Tensor) -> Tensor:
    """``[B, 1, K]`` or ``[B, K]`` as ``[B, 1, ..., 1, K]`` that broadcasts over the tokens of ``x``."""
    return value.reshape(value.shape[0], *(1,) * (x.dim() - 2), value.shape[-1])
