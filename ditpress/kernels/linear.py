"""A linear layer on low-bit weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.kernels.arguments import check_bias, check_weight
from ditpress.kernels.formats import Format, get_format
from ditpress.kernels.packing import packed_width
from ditpress.kernels.qlinear import qlinear
from ditpress.kernels.reference import dequantize

Activation = Literal["int8", "none"]


def scale_dtype(group_size: int, in_features: int) -> torch.dtype:
    """How scales are stored: float32 with one scale per output channel, float16 with groups."""
    return torch.float32 if group_size == in_features else torch.float16


class QuantizedLinear(nn.Module):
    """``y = x Wᵀ + b`` with ``W[n, k] = scale[n, k // group_size] * codebook[code[n, k // d]][k % d]``.

    Buffers (N = out_features, K = in_features, G = K / group_size):
        codes: uint8 ``[N, ceil(K / d * bits / 8)]``, packed as in :func:`ditpress.kernels.packing.pack`.
        scale: float32 ``[N, 1]`` or float16 ``[N, G]``.
        codebook: int8 ``[2**bits, d]``.
        bias: float32 ``[N]`` or None.

    Their dtypes are part of the format: ``module.half()`` and the like move but never convert them; only the
    input decides the dtype of the output. Inference only: no gradient goes through it.

    Args:
        codes, scale, bias: the buffers.
        format: the weight format or its name.
        in_features: K, which packed codes alone do not tell.
        activation: "int8" quantizes the input per token at run time, "none" multiplies in float32.
    """

    codes: Tensor
    scale: Tensor
    codebook: Tensor
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        format: Format | str,
        in_features: int,
        bias: Tensor | None = None,
        activation: Activation = "int8",
    ) -> None:
        super().__init__()
        fmt = get_format(format) if isinstance(format, str) else format
        codebook = fmt.codebook_tensor().to(codes.device)
        check_weight(in_features, codes, scale, codebook, activation)
        check_bias(bias, codes.shape[0])
        self.in_features = in_features
        self.out_features = codes.shape[0]
        self.format = fmt.name
        self.group_size = in_features // scale.shape[1]
        self.activation = activation
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("codebook", codebook)
        self.register_buffer("bias", bias)

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        format: Format | str,
        group_size: int,
        activation: Activation,
        bias: bool,
        device: torch.device | str | None = None,
    ) -> QuantizedLinear:
        """A layer of the right shapes whose numbers are still to be loaded (all codes and scales zero)."""
        fmt = get_format(format) if isinstance(format, str) else format
        if group_size < 1 or in_features % group_size or in_features % fmt.vector_length:
            raise InputError(
                f"group size {group_size} and vector length {fmt.vector_length} must divide "
                f"in_features={in_features}"
            )
        return cls(
            torch.zeros(
                (out_features, packed_width(in_features // fmt.vector_length, fmt.bits)),
                dtype=torch.uint8,
                device=device,
            ),
            torch.zeros(
                (out_features, in_features // group_size),
                dtype=scale_dtype(group_size, in_features),
                device=device,
            ),
            fmt,
            in_features,
            bias=torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None,
            activation=activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, computed in float32, returned in the dtype of ``x``."""
        if x.dtype == torch.float32:  # no casts in the exported graph
            return qlinear(x, self.codes, self.scale, self.codebook, self.bias, self.activation)
        y = qlinear(x.float(), self.codes, self.scale, self.codebook, self.bias, self.activation)
        return y.to(x.dtype)

    def dequantize(self) -> Tensor:
        """The weight as float32 ``[N, K]``."""
        return dequantize(self.codes, self.scale, self.codebook, self.in_features)

    def stored_bits(self) -> int:
        """Bits that the layer takes in a checkpoint: codes, scales, codebook and bias."""
        return sum(8 * buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, format={self.format}, "
            f"group_size={self.group_size}, activation={self.activation}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, kept in before.items():
            moved = cast(Tensor, getattr(self, name))
            if moved.dtype != kept.dtype:
                setattr(self, name, kept.to(moved.device))
        return self
