"""Codes of less than a byte, packed row by row into bytes.

How a code is stored follows from the number of entries of its codebook. A row is a sequence of whole numbers,
each written as little-endian bytes, and a number holds codes as digits to the base of the number of entries,
the first code in the lowest digit: ``byte = c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4`` for three entries, one
little-endian bit stream for powers of two.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ditpress.errors import InputError

BITS: dict[int, float] = {2: 1, 3: 1.6, 4: 2, 16: 4, 64: 6, 256: 8}
"""Bits that one code takes, by the number of entries of its codebook."""

# So many codes in so many bytes.
_UNITS = {2: (8, 1), 3: (5, 1), 4: (4, 1), 16: (2, 1), 64: (4, 3), 256: (1, 1)}


def packed_width(count: int, entries: int) -> int:
    """Bytes of one packed row of ``count`` codes; a last partly filled byte counts whole."""
    codes, size = _unit(entries)
    return -(-count * size // codes)


def pack(codes: Tensor, entries: int) -> Tensor:
    """Pack codes into bytes, the first code in the lowest digits.

    Args:
        codes: uint8 ``[N, count]``, every value below ``entries``.
        entries: of the codebook: 2, 3, 4, 16, 64 or 256.

    Returns:
        uint8 ``[N, packed_width(count, entries)]``; with 16 entries element 2j lies in the low nibble of byte
        j. Unused digits at the end of a row are zero.
    """
    per_unit, size = _unit(entries)
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise InputError(f"codes are {codes.dtype} {list(codes.shape)}, expected torch.uint8 [N, count]")
    if codes.numel() and int(codes.max()) >= entries:
        raise InputError(f"code {int(codes.max())} has no place in a codebook of {entries} entries")
    if per_unit == 1:
        return codes.clone()
    rows, count = codes.shape
    units = -(-count // per_unit)
    if units * per_unit != count:
        codes = torch.nn.functional.pad(codes, (0, units * per_unit - count))
    digits = codes.view(rows, units, per_unit)
    numbers = torch.zeros((rows, units), dtype=torch.uint8 if size == 1 else torch.int32, device=codes.device)
    for i in range(per_unit):
        numbers += digits[..., i].to(numbers.dtype) * entries**i
    if size == 1:
        return numbers
    packed = torch.stack([(numbers >> 8 * i & 255).to(torch.uint8) for i in range(size)], dim=-1)
    return packed.view(rows, units * size)[:, : packed_width(count, entries)].contiguous()


def unpack(packed: Tensor, entries: int, count: int) -> Tensor:
    """Inverse of :func:`pack`: uint8 ``[N, packed_width(count, entries)]`` to uint8 ``[N, count]``."""
    per_unit, size = _unit(entries)
    width = packed_width(count, entries)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != width:
        raise InputError(
            f"packed codes are {packed.dtype} {list(packed.shape)}, expected torch.uint8 [N, {width}] "
            f"for {count} codes of a codebook of {entries} entries"
        )
    if per_unit == 1:
        return packed.clone()
    rows, units = packed.shape[0], -(-count // per_unit)
    if entries == 3:
        digits = _trits().to(packed.device)[packed.int()]
    else:
        if units * size != width:
            packed = torch.nn.functional.pad(packed, (0, units * size - width))
        numbers = packed
        if size > 1:
            parts = packed.view(rows, units, size)
            numbers = torch.zeros((rows, units), dtype=torch.int32, device=packed.device)
            for i in range(size):
                numbers |= parts[..., i].int() << 8 * i
        bits = int(BITS[entries])
        digits = torch.stack(
            [((numbers >> bits * i) & (entries - 1)).to(torch.uint8) for i in range(per_unit)], dim=-1
        )
    return digits.view(rows, units * per_unit)[:, :count].contiguous()


@cache
def _trits() -> Tensor:
    """The five trits of every byte, uint8 ``[256, 5]``. Pack never writes 243..255; they read as 0..12."""
    byte = torch.arange(256).unsqueeze(1)
    return (byte // 3 ** torch.arange(5) % 3).to(torch.uint8)


def _unit(entries: int) -> tuple[int, int]:
    """Codes and bytes of the smallest run of whole codes in whole bytes."""
    if entries not in _UNITS:
        expected = ", ".join(map(str, _UNITS))
        raise InputError(f"codes of a codebook of {entries} entries cannot be packed, expected {expected}")
    return _UNITS[entries]
