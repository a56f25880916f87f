"""Packing of codes against plain Python, bit by bit and digit by digit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditpress.errors import InputError
from ditpress.kernels.packing import BITS, pack, packed_width, unpack

ENTRIES = (2, 3, 4, 16, 64, 256)


def bit_stream(row: list[int], bits: int) -> list[int]:
    """The bytes of one little-endian bit stream, one bit at a time."""
    stream = [code >> i & 1 for code in row for i in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [sum(bit << i for i, bit in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8)]


def trits(row: list[int]) -> list[int]:
    """Five codes a byte to the base 3."""
    padded = row + [0] * (-len(row) % 5)
    fives = [padded[at : at + 5] for at in range(0, len(padded), 5)]
    return [c0 + 3 * c1 + 9 * c2 + 27 * c3 + 81 * c4 for c0, c1, c2, c3, c4 in fives]


@given(st.sampled_from(ENTRIES), st.integers(0, 5), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_pack_is_the_written_layout_and_unpack_inverts_it(
    entries: int, rows: int, count: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, entries, (rows, count), dtype=np.uint8)
    packed = pack(torch.from_numpy(codes), entries)
    expected = [
        trits(row) if entries == 3 else bit_stream(row, entries.bit_length() - 1) for row in codes.tolist()
    ]
    assert packed.tolist() == expected
    assert packed.shape == (rows, packed_width(count, entries))
    assert np.array_equal(unpack(packed, entries, count).numpy(), codes)


def test_examples() -> None:
    def packed(codes: list[int], entries: int) -> list[int]:
        return pack(torch.tensor([codes], dtype=torch.uint8), entries).tolist()[0]

    assert packed([1, 2, 15], 16) == [0x21, 0x0F]  # low nibble first
    assert packed([2, 2, 2, 2, 2, 1], 3) == [242, 1]
    # 6 bits: 4 codes in 3 bytes, code 1 in the high bits of byte 0 and the low bits of byte 1
    assert packed([0b100001, 0b111111, 0, 0b110000], 64) == [0b11100001, 0b00001111, 0b11000000]
    assert packed([63], 64) == [63]


def test_bits_are_those_of_long_rows() -> None:
    assert tuple(BITS) == ENTRIES
    for entries, bits in BITS.items():
        assert 8 * packed_width(120_000, entries) == 120_000 * bits


def test_every_byte_of_trits_reads_as_codes_of_the_codebook() -> None:
    every = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
    codes = unpack(every, 3, 5)
    assert int(codes.max()) == 2
    assert torch.equal(pack(codes[:243], 3), every[:243])


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="codebook of 8 entries cannot be packed, expected 2, 3, 4, 16, 64"):
        pack(torch.zeros(1, 1, dtype=torch.uint8), 8)
    with pytest.raises(InputError, match="code 16 has no place in a codebook of 16 entries"):
        pack(torch.tensor([[16]], dtype=torch.uint8), 16)
    with pytest.raises(InputError, match="code 3 has no place"):
        pack(torch.tensor([[3]], dtype=torch.uint8), 3)
    with pytest.raises(InputError, match="codes are torch"):
        pack(torch.zeros(1, 1), 16)
    with pytest.raises(InputError, match=r"expected torch.uint8 \[N, 2\]"):
        unpack(torch.zeros(1, 3, dtype=torch.uint8), 16, 4)
