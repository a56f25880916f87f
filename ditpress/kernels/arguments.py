"""Checks of the arguments of ``ditpress::qlinear``, shared by every implementation of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.packing import packed_width

ACTIVATIONS = ("int8", "none")

MAX_GROUP = 2**17
"""Weights that may share a scale with int8 activations: 2**17 products of 127 * 128 still fit int32."""


def bits_of(codebook: Tensor) -> int:
    """Bits per code of a codebook ``[2**bits, d]``."""
    return codebook.shape[0].bit_length() - 1


def check_input(x: Tensor) -> None:
    """Raise InputError unless ``x`` is float32 with at least one dimension."""
    if x.dtype != torch.float32 or x.dim() < 1:
        raise InputError(f"qlinear input is {x.dtype} {list(x.shape)}, expected torch.float32 [..., K]")


def check_bias(bias: Tensor | None, out_features: int) -> None:
    """Raise InputError unless ``bias`` is None or float32 ``[out_features]``."""
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != (out_features,)):
        raise InputError(
            f"qlinear bias is {bias.dtype} {list(bias.shape)}, expected torch.float32 [{out_features}]"
        )


def check_weight(in_features: int, codes: Tensor, scale: Tensor, codebook: Tensor, activation: str) -> None:
    """Raise InputError unless the weight tensors fit each other, ``in_features`` and the activation."""
    if activation not in ACTIVATIONS:
        raise InputError(f"qlinear activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    if codebook.dtype != torch.int8 or codebook.dim() != 2 or codebook.shape[0] not in (2, 4, 16, 256):
        raise InputError(
            f"qlinear codebook is {codebook.dtype} {list(codebook.shape)}, expected torch.int8 [2**bits, d], "
            "bits 1, 2, 4 or 8"
        )
    bits, length = bits_of(codebook), codebook.shape[1]
    if in_features < 1 or length < 1 or in_features % length:
        raise InputError(f"qlinear codebook vectors of {length} do not divide in_features={in_features}")
    width = packed_width(in_features // length, bits)
    if codes.dtype != torch.uint8 or codes.dim() != 2 or codes.shape[0] < 1 or codes.shape[1] != width:
        raise InputError(
            f"qlinear codes are {codes.dtype} {list(codes.shape)}, expected torch.uint8 [N, {width}] "
            f"for in_features={in_features} in {bits} bits"
        )
    out_features = codes.shape[0]
    if (
        scale.dtype not in (torch.float16, torch.float32)
        or scale.dim() != 2
        or scale.shape[0] != out_features
        or scale.shape[1] < 1
        or in_features % scale.shape[1]
    ):
        raise InputError(
            f"qlinear scale is {scale.dtype} {list(scale.shape)}, expected torch.float16 or torch.float32 "
            f"[{out_features}, G] with G a divisor of in_features={in_features}"
        )
    if activation == "int8" and in_features // scale.shape[1] > MAX_GROUP:
        raise InputError(
            f"qlinear group of {in_features // scale.shape[1]} weights can overflow int32 sums, "
            f"expected at most {MAX_GROUP}: use smaller groups"
        )
