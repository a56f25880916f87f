"""Codes of less than a byte, packed row by row into bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.errors import InputError


def packed_width(count: int, bits: int) -> int:
    """Bytes of one packed row of ``count`` codes; a last partly filled byte counts whole."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into bytes, the first code of a byte in its lowest bits.

    Args:
        codes: uint8 ``[N, count]``, every value below ``2**bits``.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 ``[N, packed_width(count, bits)]``; with 4 bits element 2j lies in the low nibble of byte j.
        Unused high bits of the last byte are zero.
    """
    per_byte = _per_byte(bits)
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise InputError(f"codes are {codes.dtype} {list(codes.shape)}, expected torch.uint8 [N, count]")
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise InputError(f"code {int(codes.max())} does not fit {bits} bits")
    if per_byte == 1:
        return codes.clone()
    rows, count = codes.shape
    width = packed_width(count, bits)
    if width * per_byte != count:
        codes = torch.nn.functional.pad(codes, (0, width * per_byte - count))
    columns = codes.view(rows, width, per_byte)
    packed = columns[..., 0].clone()
    for i in range(1, per_byte):
        packed |= columns[..., i] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack`: uint8 ``[N, packed_width(count, bits)]`` to uint8 ``[N, count]``."""
    per_byte = _per_byte(bits)
    width = packed_width(count, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != width:
        raise InputError(
            f"packed codes are {packed.dtype} {list(packed.shape)}, expected torch.uint8 [N, {width}] "
            f"for {count} codes of {bits} bits"
        )
    if per_byte == 1:
        return packed.clone()
    parts = [(packed >> (bits * i)) & (2**bits - 1) for i in range(per_byte)]
    return torch.stack(parts, dim=-1).view(packed.shape[0], width * per_byte)[:, :count].contiguous()


def _per_byte(bits: int) -> int:
    if bits not in (1, 2, 4, 8):
        raise InputError(f"{bits} bits per code, expected 1, 2, 4 or 8")
    return 8 // bits
