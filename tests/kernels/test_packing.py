"""Packing of codes against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditpress.errors import InputError
from ditpress.kernels.packing import pack, packed_width, unpack


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pack_is_little_endian_bits_and_unpack_inverts_it(
    bits: int, rows: int, count: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count), dtype=np.uint8)
    packed = pack(torch.from_numpy(codes), bits)
    # numpy's own bit packing of the same little-endian bit stream
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, -1)
    assert np.array_equal(packed.numpy(), np.packbits(stream, axis=-1, bitorder="little"))
    assert packed.shape[1] == packed_width(count, bits)
    assert np.array_equal(unpack(packed, bits, count).numpy(), codes)


def test_four_bits_low_nibble_first() -> None:
    codes = torch.tensor([[1, 2, 15]], dtype=torch.uint8)
    assert pack(codes, 4).tolist() == [[0x21, 0x0F]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="3 bits"):
        pack(torch.zeros(1, 1, dtype=torch.uint8), 3)
    with pytest.raises(InputError, match="code 16 does not fit 4 bits"):
        pack(torch.tensor([[16]], dtype=torch.uint8), 4)
    with pytest.raises(InputError, match="codes are torch"):
        pack(torch.zeros(1, 1), 4)
    with pytest.raises(InputError, match=r"expected torch.uint8 \[N, 2\]"):
        unpack(torch.zeros(1, 3, dtype=torch.uint8), 4, 4)
