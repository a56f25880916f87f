"""A linear layer on low-bit weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.activations import Activation
from ditpress.kernels.arguments import check_bias, check_weight, folds
from ditpress.kernels.buffers import FixedBuffers
from ditpress.kernels.formats import Format, get_format
from ditpress.kernels.packing import packed_width
from ditpress.kernels.qlinear import qlinear
from ditpress.kernels.reference import dequantize, folded_weight

__all__ = ["Activation", "QuantizedLinear", "scale_dtype"]


def scale_dtype(group_size: int, in_features: int) -> torch.dtype:
    """How scales are stored: float32 with one scale per output channel, float16 with groups."""
    return torch.float32 if group_size == in_features else torch.float16


class QuantizedLinear(FixedBuffers):
    """``y = x Wᵀ + b`` with ``W[n, k] = scale[n, k // group_size] * codebook[code[n, k // d]][k % d]``.

    Buffers (N = out_features, K = in_features, G = K / group_size):
        codes: uint8 ``[N, packed_width(K / d, entries)]``, as in :func:`ditpress.kernels.packing.pack`.
        scale: float32 ``[N, 1]`` or float16 ``[N, G]``.
        codebook: int8 ``[entries, d]``; that of the format, or the layer's own where the format has none.
        bias: float32 ``[N]`` or None.
        table: uint8 ``[N]``, which table of the codebook a row uses, for formats with several; else None.

    Their dtypes are part of the format: ``module.half()`` and the like move but never convert them; only the
    input decides the dtype of the output. Inference only: no gradient goes through it.

    Args:
        codes, scale, bias, table: the buffers.
        format: the weight format or its name.
        in_features: K, which packed codes alone do not tell.
        activation: how the input is rounded at run time (:mod:`ditpress.kernels.activations`): "int8" and
            "fp8-e4m3" per token, "int4", "uint4" and "fp4-e2m1" per token and group; "none" multiplies in
            float32.
        codebook: for formats without a fixed one (``vq-...``), and only for those.
        fold_scales: with "int8" and groups, multiply the group scales into 8-bit weights: faster, one more
            rounding of the weight (:mod:`ditpress.kernels.folding`). Else without effect.
    """

    codes: Tensor
    scale: Tensor
    codebook: Tensor
    bias: Tensor | None
    table: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        format: Format | str,
        in_features: int,
        bias: Tensor | None = None,
        activation: Activation = "int8",
        codebook: Tensor | None = None,
        fold_scales: bool = False,
        table: Tensor | None = None,
    ) -> None:
        super().__init__()
        fmt = get_format(format) if isinstance(format, str) else format
        codebook = _codebook_of(fmt, codebook).to(codes.device)
        _check_whose_table(fmt, table)
        check_weight(in_features, codes, scale, codebook, activation, fold_scales, table)
        check_bias(bias, codes.shape[0])
        self.in_features = in_features
        self.out_features = codes.shape[0]
        self.format = fmt.name
        self.group_size = in_features // scale.shape[1]
        self.activation = activation
        self.fold_scales = fold_scales
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("codebook", codebook)
        self.register_buffer("bias", bias)
        self.register_buffer("table", table)

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
        fold_scales: bool = False,
    ) -> QuantizedLinear:
        """A layer of the right shapes whose numbers are still to be loaded: zero, also its own codebook."""
        fmt = get_format(format) if isinstance(format, str) else format
        if group_size < 1 or in_features % group_size or in_features % fmt.vector_length:
            raise InputError(
                f"group size {group_size} and vector length {fmt.vector_length} must divide "
                f"in_features={in_features}"
            )
        return cls(
            torch.zeros(
                (out_features, packed_width(in_features // fmt.vector_length, fmt.entries)),
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
            codebook=(
                torch.zeros((fmt.entries * fmt.tables, fmt.vector_length), dtype=torch.int8, device=device)
                if fmt.codebook is None
                else None
            ),
            fold_scales=fold_scales,
            table=torch.zeros(out_features, dtype=torch.uint8, device=device) if fmt.tables > 1 else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, computed in float32, returned in the dtype of ``x``."""
        if x.dtype != torch.float32:  # no casts in the exported graph where none are needed
            return self.forward(x.float()).to(x.dtype)
        return qlinear(
            x,
            self.codes,
            self.scale,
            self.codebook,
            self.bias,
            self.activation,
            self.fold_scales,
            self.table,
        )

    def dequantize(self) -> Tensor:
        """The weight that the layer multiplies by, float32 ``[N, K]``; with folded scales the 8-bit one."""
        weight = folded_weight if folds(self.scale, self.activation, self.fold_scales) else dequantize
        return weight(self.codes, self.scale, self.codebook, self.in_features, self.table)

    def stored_bits(self) -> int:
        """Bits that the layer takes in a checkpoint: codes, scales, codebook, bias and table."""
        return sum(8 * buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, format={self.format}, "
            f"group_size={self.group_size}, activation={self.activation}, bias={self.bias is not None}, "
            f"fold_scales={self.fold_scales}"
        )


def _check_whose_table(format: Format, table: Tensor | None) -> None:
    if format.tables > 1 and table is None:
        raise InputError(f"format {format.name} has {format.tables} tables: give table, one per channel")
    if format.tables == 1 and table is not None:
        raise InputError(f"format {format.name} has one table: leave table out")


def _codebook_of(format: Format, own: Tensor | None) -> Tensor:
    if own is None:
        return format.codebook_tensor()
    if format.codebook is not None:
        raise InputError(f"format {format.name} has a fixed codebook: leave the layer's own one out")
    expected = (format.entries * format.tables, format.vector_length)
    if own.dtype != torch.int8 or own.shape != expected:
        raise InputError(
            f"codebook of format {format.name} is {own.dtype} {list(own.shape)}, "
            f"expected torch.int8 {list(expected)}"
        )
    return own
