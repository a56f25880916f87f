"""Checks of the arguments of ``ditpress::qlinear`` and ``qlinear_fused``, for every implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.activations import ACTIVATIONS
from ditpress.kernels.packing import BITS, packed_width

MAX_GROUP = 2**17
"""Weights that may share a scale where x is rounded: 2**17 products of 127 * 128 still fit int32."""

TABLE_ENTRIES = 16
"""Entries of each table of a codebook with several of them."""


class LinearArguments(NamedTuple):
    """The arguments of ``ditpress::qlinear`` behind x, in their order."""

    codes: Tensor
    scale: Tensor
    codebook: Tensor
    bias: Tensor | None
    activation: str
    fold_scales: bool = False
    table: Tensor | None = None

    def check(self, x: Tensor) -> None:
        """Raise InputError unless the arguments fit each other and ``x``."""
        check_input(x)
        check_weight(
            x.shape[-1],
            self.codes,
            self.scale,
            self.codebook,
            self.activation,
            self.fold_scales,
            self.table,
        )
        check_bias(self.bias, self.codes.shape[0])


def code_entries(codebook: Tensor, table: Tensor | None) -> int:
    """Values that a code can take: the entries of the codebook, or of one of its tables."""
    return int(codebook.shape[0]) if table is None else TABLE_ENTRIES


def folds(scale: Tensor, activation: str, fold_scales: bool) -> bool:
    """Whether ``fold_scales`` changes anything: only int8 activations and more than one group do."""
    return fold_scales and activation == "int8" and scale.shape[1] > 1


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


def check_weight(
    in_features: int,
    codes: Tensor,
    scale: Tensor,
    codebook: Tensor,
    activation: str,
    fold_scales: bool = False,
    table: Tensor | None = None,
) -> None:
    """Raise InputError unless the weight tensors fit each other, ``in_features`` and the activation."""
    if activation not in ACTIVATIONS:
        raise InputError(f"qlinear activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    if not isinstance(fold_scales, bool):
        raise InputError(f"qlinear fold_scales is {fold_scales!r}, expected true or false")
    if table is not None:
        _check_table(table, codes, codebook)
    elif codebook.dtype != torch.int8 or codebook.dim() != 2 or int(codebook.shape[0]) not in BITS:
        raise InputError(
            f"qlinear codebook is {codebook.dtype} {list(codebook.shape)}, expected torch.int8 [entries, d], "
            f"entries one of {', '.join(map(str, BITS))}"
        )
    entries, length = code_entries(codebook, table), int(codebook.shape[1])  # also of a symbolic trace
    if in_features < 1 or length < 1 or in_features % length:
        raise InputError(f"qlinear codebook vectors of {length} do not divide in_features={in_features}")
    width = packed_width(in_features // length, entries)
    if codes.dtype != torch.uint8 or codes.dim() != 2 or codes.shape[0] < 1 or codes.shape[1] != width:
        raise InputError(
            f"qlinear codes are {codes.dtype} {list(codes.shape)}, expected torch.uint8 [N, {width}] "
            f"for in_features={in_features} and a codebook of {entries} x {length}"
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
    if activation == "none":
        return
    if folds(scale, activation, fold_scales):
        if in_features > MAX_GROUP:
            raise InputError(
                f"qlinear with folded scales: sums over in_features={in_features} can overflow int32, "
                f"expected at most {MAX_GROUP}: set fold_scales to false"
            )
    elif in_features // scale.shape[1] > MAX_GROUP:
        raise InputError(
            f"qlinear group of {in_features // scale.shape[1]} weights can overflow int32 sums, "
            f"expected at most {MAX_GROUP}: use smaller groups"
        )


def _check_table(table: Tensor, codes: Tensor, codebook: Tensor) -> None:
    """A table for every channel, and a codebook that consists of tables."""
    if codebook.dtype != torch.int8 or codebook.dim() != 2 or codebook.shape[1] != 1:
        codebook_fits = False
    else:
        codebook_fits = 0 < codebook.shape[0] <= 256 * TABLE_ENTRIES and not codebook.shape[0] % TABLE_ENTRIES
    if not codebook_fits:
        raise InputError(
            f"qlinear codebook is {codebook.dtype} {list(codebook.shape)}, expected torch.int8 "
            f"[tables * {TABLE_ENTRIES}, 1] with a table per channel"
        )
    if table.dtype != torch.uint8 or table.shape != codes.shape[:1]:
        raise InputError(
            f"qlinear table is {table.dtype} {list(table.shape)}, expected torch.uint8 [{codes.shape[0]}]"
        )


def check_table_values(table: Tensor | None, codebook: Tensor) -> None:
    """Raise InputError where ``table`` names one that the codebook does not have: reads the numbers."""
    if table is not None and int(table.max()) * TABLE_ENTRIES >= codebook.shape[0]:
        raise InputError(
            f"qlinear table {int(table.max())} is not in a codebook of "
            f"{codebook.shape[0] // TABLE_ENTRIES} tables of {TABLE_ENTRIES}"
        )


def check_prologue(x: Tensor, shift: Tensor | None, modulation: Tensor | None, epsilon: float) -> None:
    """Raise InputError unless ``shift`` and ``modulation`` are both None or fit ``x`` ``[B, ..., K]``."""
    if (shift is None) != (modulation is None):
        raise InputError("qlinear_fused takes shift and modulation together: give both or none")
    if shift is None or modulation is None:
        return
    if not epsilon >= 0:
        raise InputError(f"qlinear_fused epsilon is {epsilon}, expected 0 or more")
    _check_per_sample("shift", shift, x, x.shape[-1])
    _check_per_sample("modulation", modulation, x, x.shape[-1])


def check_epilogue(
    x: Tensor, out_features: int, gelu: bool, gate: Tensor | None, residual: Tensor | None
) -> None:
    """Raise InputError unless ``gate`` and ``residual`` are both None or fit the output, without ``gelu``."""
    if (gate is None) != (residual is None):
        raise InputError("qlinear_fused takes gate and residual together: give both or none")
    if gate is None or residual is None:
        return
    if gelu:
        raise InputError("qlinear_fused ends in gelu or in gate and residual, not in both: leave one out")
    _check_per_sample("gate", gate, x, out_features)
    shape = (*x.shape[:-1], out_features)
    if residual.dtype != torch.float32 or residual.shape != shape:
        raise InputError(
            f"qlinear_fused residual is {residual.dtype} {list(residual.shape)}, "
            f"expected torch.float32 {list(shape)} as the output"
        )


def _check_per_sample(name: str, value: Tensor, x: Tensor, width: int) -> None:
    """One row for every sample of ``x`` ``[B, ..., K]``, or one for all of them."""
    fits = value.dtype == torch.float32 and x.dim() >= 2 and value.shape[-1:] == (width,)
    fits = fits and (value.dim() == 2 or (value.dim() == 3 and value.shape[1] == 1))
    if not fits or (value.shape[0] != 1 and value.shape[0] != x.shape[0]):
        raise InputError(
            f"qlinear_fused {name} is {value.dtype} {list(value.shape)} for an input of {list(x.shape)}, "
            f"expected torch.float32 [B, 1, {width}] or [B, {width}], B that of the input [B, ..., K] or 1"
        )
