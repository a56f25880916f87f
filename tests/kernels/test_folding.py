"""Folding of group scales against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_cases import ALL, fold_factors, largest, make_case, values64, weights64

from ditpress.kernels.folding import fold_scales
from ditpress.kernels.reference import dequantize


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(ALL),
    groups=st.integers(1, 6),
    exponent=st.integers(-149, 100),
    negative=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_weights_are_those_of_exact_integers(
    name: str, groups: int, exponent: int, negative: bool, half: bool, seed: int
) -> None:
    case = make_case(name, 1, 7, 8, groups, seed=seed)
    scale = case.scale * 2.0**exponent  # down to subnormal numbers
    scale[0] = 0
    if negative:
        scale[1] = -scale[1]
    case.scale = scale.clamp(-6e4, 6e4).half() if half else scale
    values = values64(case)
    w8, s1 = fold_scales(torch.from_numpy(values).float(), case.scale, case.codebook, case.table)
    factors, expected_s1 = fold_factors(case.scale.numpy().astype(np.float32), largest(case))
    assert np.array_equal(s1.numpy(), expected_s1)
    assert np.abs(factors).max() < 2**15
    for row in range(7):
        for k in range(values.shape[1]):
            value, factor = int(values[row, k]), int(factors[row, k // 8])
            exact = math.floor(Fraction(value * factor + 64, 128))
            assert int(w8[row, k]) == max(-128, min(127, exact))
            # The x86 instruction vpmulhrsw on 16-bit numbers, the value in the high byte, does the same.
            assert (((value << 8) * factor >> 14) + 1) >> 1 == exact
    assert not w8[0].any()
    assert not s1[0].any()


@pytest.mark.parametrize("name", ALL)
def test_folded_weights_are_within_one_step_of_the_exact_ones(name: str) -> None:
    case = make_case(name, 1, 50, 16, 6, half=True)
    case.scale[:, 2] *= 20
    _, s1 = fold_factors(case.scale.float().numpy(), largest(case))
    exact, folded = weights64(case), weights64(case, fold=True)
    assert np.all(np.abs(folded - exact) <= 1.0001 * s1)
    # One rounding to 8 bits of the channel costs little where groups are alike.
    alike = make_case(name, 1, 50, 16, 6, half=True)
    error = weights64(alike, fold=True) - weights64(alike)
    assert np.linalg.norm(error) < 0.012 * np.linalg.norm(weights64(alike))


def test_one_group_would_stay_as_it_is() -> None:
    """A table that fills int8, one scale: the folded weights are the values themselves."""
    case = make_case("int8", 1, 5, 16, 1)
    case.codes.clamp_(min=1)
    table = case.codebook.clone().clamp_(min=-127)
    values = values64(case)
    w8, s1 = fold_scales(torch.from_numpy(values).float(), case.scale, table)
    assert np.array_equal(w8.numpy(), values)
    torch.testing.assert_close(s1 * w8, dequantize(case.codes, case.scale, table, 16), rtol=1e-6, atol=0)
