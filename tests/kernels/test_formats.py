"""Formats against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ditpress.errors import InputError
from ditpress.kernels.formats import FORMATS, Format, get_format

# Dettmers et al. 2023 (QLoRA), appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def scalars(name: str) -> list[int]:
    return get_format(name).codebook_tensor()[:, 0].tolist()


def test_integers_are_offset_codes() -> None:
    assert scalars("int4") == list(range(-8, 8))
    assert scalars("int8") == list(range(-128, 128))


@pytest.mark.parametrize(
    ("name", "exponent_bits", "mantissa_bits", "step"),
    [("fp4-e2m1", 2, 1, 2.0), ("fp4-e1m2", 1, 2, 4.0), ("fp4-e3m0", 3, 0, 4.0)],
)
def test_minifloats_follow_sign_exponent_mantissa(
    name: str, exponent_bits: int, mantissa_bits: int, step: float
) -> None:
    bias = 2 ** (exponent_bits - 1) - 1
    values = []
    for code in range(16):
        sign = -1.0 if code & 8 else 1.0
        exponent, mantissa = (code & 7) >> mantissa_bits, (code & 7) % 2**mantissa_bits
        fraction = mantissa / 2**mantissa_bits
        if exponent:
            values.append(sign * 2.0 ** (exponent - bias) * (1 + fraction))
        else:
            values.append(sign * 2.0 ** (1 - bias) * fraction)
    # One factor, a power of two, turns the floats into the integers of the codebook.
    smallest = min(v for v in values if v > 0)
    assert [v / smallest for v in values] == scalars(name)
    if name == "fp4-e2m1":
        assert values[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # OCP Microscaling Formats 1.0
        assert smallest * step == 1.0


def test_nf4_matches_the_paper_and_normal_quantiles() -> None:
    assert scalars("nf4") == [round(127 * v) for v in NF4]
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([positive, negative, [0.0]]))
    assert scalars("nf4") == np.rint(127 * expected / expected.max()).astype(int).tolist()


def test_ternary() -> None:
    assert scalars("ternary") == [-1, 0, 1]
    assert scalars("ternary-2bit")[:3] == [-1, 0, 1]
    assert (get_format("ternary").bits, get_format("ternary-2bit").bits) == (1.6, 2)


def test_fp4_holds_the_three_layouts() -> None:
    """Magnitudes in their smallest steps, and the sign in the high bit of the code."""
    table = get_format("fp4").codebook_tensor().view(3, 2, 8).tolist()
    magnitudes = [[0, 1, 2, 3, 4, 6, 8, 12], list(range(8)), [0, 1, 2, 4, 8, 16, 32, 64]]
    assert table == [[part, [-value for value in part]] for part in magnitudes]
    assert table[0] == get_format("fp4-e2m1").codebook_tensor().view(2, 8).tolist()


def test_properties() -> None:
    for name, fmt in FORMATS.items():
        assert fmt.name == name
        assert fmt.bits == (1.6 if fmt.entries == 3 else np.log2(fmt.entries))
        if fmt.codebook is None:
            continue
        table = fmt.codebook_tensor()
        assert table.dtype == torch.int8
        assert tuple(table.shape) == (fmt.entries * fmt.tables, fmt.vector_length)
        assert fmt.max_abs == int(table.int().abs().max())
    assert Format("vq", 4, ((0, 1, 2), (3, 4, 5), (-6, 7, 8), (9, 1, 2)), 3).bits == 2


@pytest.mark.parametrize(
    ("name", "entries", "length", "bits"), [("vq-256x4", 256, 4, 8), ("vq-64x2", 64, 2, 6)]
)
def test_vector_formats_have_no_table(name: str, entries: int, length: int, bits: int) -> None:
    fmt = get_format(name)
    assert (fmt.entries, fmt.vector_length, fmt.bits, fmt.codebook) == (entries, length, bits, None)
    with pytest.raises(InputError, match=rf"{name} .* give one of torch.int8 \[{entries}, {length}\]"):
        fmt.codebook_tensor()


@pytest.mark.parametrize(
    ("entries", "codebook", "length", "message"),
    [
        (8, ((0,),) * 8, 1, "8 entries, expected 2, 3, 4, 16, 64, 256"),
        (2, ((0,),), 1, "codebook of 1 entries, expected 2"),
        (2, ((0,), (0, 1)), 1, "must hold 1 integers"),
        (2, ((0,), (200,)), 1, r"\[-128, 127\]"),
        (2, None, 0, "vectors of 0"),
        (16, ((0,),) * 16, (1, 3), "codebook of 16 entries, expected 48"),
        (4, None, (1, 2), "2 tables, expected 1, or more of 16 numbers"),
    ],
)
def test_bad_formats_are_refused(
    entries: int,
    codebook: tuple[tuple[int, ...], ...] | None,
    length: int | tuple[int, int],
    message: str,
) -> None:
    length, tables = length if isinstance(length, tuple) else (length, 1)
    with pytest.raises(InputError, match=message):
        Format("bad", entries, codebook, length, tables)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'int5'.*fp4-e2m1"):
        get_format("int5")
