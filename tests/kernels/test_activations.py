"""Activation formats against the lists of their values and against torch's float8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_cases import E2M1, rounded64

from ditpress.errors import InputError
from ditpress.kernels.activations import (
    ACTIVATIONS,
    DIGITS,
    LEVELS,
    PER_GROUP,
    TINY,
    fake_quantize,
    quantize_activations,
    split_digits,
)

ROUNDING = [name for name in ACTIVATIONS if name != "none"]


def test_all_formats_are_known() -> None:
    assert set(ACTIVATIONS) == {"none", *LEVELS}
    assert set(PER_GROUP) < set(LEVELS)


@pytest.mark.parametrize("activation", ROUNDING)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    group=st.integers(1, 40),
    groups=st.integers(1, 4),
    magnitude=st.sampled_from([1e-30, 1.0, 1e20]),
    positive=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_value_goes_to_the_nearest(
    activation: str, rows: int, group: int, groups: int, magnitude: float, positive: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, group * groups, generator=generator) * magnitude
    x = x.abs() if positive else x
    q, a = quantize_activations(x, activation, group)
    assert a.shape == (rows, groups if activation in PER_GROUP else 1)
    assert torch.equal(q, q.round())
    assert float(q.abs().max()) <= LEVELS[activation]
    exact = rounded64(x.numpy(), activation, group)
    span = x.shape[1] // a.shape[1]
    assert np.array_equal(q.double().numpy() * np.repeat(a.double().numpy(), span, axis=1), exact)
    fake = fake_quantize(x.view(1, rows, -1), activation, group)[0]
    assert np.all(np.abs(fake.double().numpy() - exact) <= 2.0**-24 * np.abs(exact) + 2.0**-149)


@pytest.mark.parametrize(
    ("activation", "values", "expected"),
    [
        ("int8", [127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.6], [127, 0, 2, 2, 0, -2, -127]),
        ("int4", [7, 0.5, 1.5, 2.5, -3.5, -4.5, -7], [7, 0, 2, 2, -4, -4, -7]),
        ("uint4", [15, 0.5, 1.5, 13.5, -3.5, -15, 14.5], [15, 0, 2, 14, 0, 0, 14]),
        (
            "fp4-e2m1",
            [12, 0.5, 1.5, 2.5, 3.5, 5, 7, 10, -0.5, -5, -9.9, 10.1],
            [12, 0, 2, 2, 4, 4, 8, 8, 0, -4, -8, 12],
        ),
        # ties between subnormal numbers, between 2**-6 and its neighbours, and high up
        (
            "fp8-e4m3",
            [448, 2**-10, 3 * 2**-10, 15 * 2**-10, 17 * 2**-10, -432, -424],
            [448 * 512, 0, 2, 8, 8, -416 * 512 - 32 * 512 / 2 * 2, -416 * 512],
        ),
    ],
)
def test_ties_go_to_the_even_one(activation: str, values: list[float], expected: list[float]) -> None:
    q, _ = quantize_activations(torch.tensor([values]), activation, len(values))
    assert q.tolist() == [expected]


def test_grid_of_e2m1_is_that_of_the_specification() -> None:
    x = torch.linspace(-6, 6, 12001).unsqueeze(0)
    q, a = quantize_activations(x, "fp4-e2m1", x.shape[1])
    assert sorted(set(q.abs().view(-1).tolist())) == [2 * value for value in E2M1]
    assert a.item() == 0.5


def test_e4m3_is_torchs() -> None:
    """Scaled by one, every kind of number rounds as torch rounds it, and values of the format stay."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    exponents = torch.randint(-14, 7, (20000,), generator=generator)
    wide = torch.randn(20000, generator=generator) * 2.0**exponents
    middles = (grid[1:] + grid[:-1]) / 2
    x = torch.cat([grid, -grid, middles, -middles, wide.clamp(-448, 448)]).unsqueeze(0)
    q, a = quantize_activations(x, "fp8-e4m3", 1)
    assert a.item() == 1 / 512
    assert torch.equal(q / 512, x.to(torch.float8_e4m3fn).float())


def test_digits_add_up_and_are_small() -> None:
    grid = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float() * 512
    q = torch.cat([grid, -grid])
    digits = split_digits(q)
    assert torch.equal(sum(digit.double() * w for digit, w in zip(digits, DIGITS, strict=True)), q.double())
    assert all(bool((digit == digit.round()).all()) and float(digit.abs().max()) <= 64 for digit in digits)


@pytest.mark.parametrize("activation", ROUNDING)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_groups_without_a_scale(activation: str, special: float) -> None:
    x = torch.ones(3, 8)
    x[0, 2], x[1, :4], x[2, :4] = special, 0.0, 1e-37
    q, a = quantize_activations(x, activation, 4)
    touched = 2 if activation in PER_GROUP else 1
    assert a[0, 0].isnan()
    assert not q[0, :4].any()
    assert not q[1:, :4].any()
    if touched == 2:
        assert a[0, 1].isfinite()
        assert a[1:, 0].tolist() == [0.0, 0.0]
    assert q[1:, 4:].tolist() == [[LEVELS[activation]] * 4] * 2


@pytest.mark.parametrize("activation", ROUNDING)
def test_from_where_on_groups_count_as_zero(activation: str) -> None:
    tiny = torch.full((1, 4), TINY[activation])
    q, a = quantize_activations(tiny, activation, 4)
    assert q.tolist() == [[LEVELS[activation]] * 4]
    assert a.item() > 0
    q, a = quantize_activations(torch.nextafter(tiny, torch.zeros(1)), activation, 4)
    assert not q.any()
    assert a.item() == 0


def test_what_is_refused() -> None:
    x = torch.ones(1, 6)
    with pytest.raises(InputError, match="activation format is 'none', expected one of int8"):
        quantize_activations(x, "none", 6)
    with pytest.raises(InputError, match="group size 4 does not divide in_features=6"):
        quantize_activations(x, "int4", 4)
    assert fake_quantize(x, "none", 4) is x
