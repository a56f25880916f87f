"""FP4 tables per channel and scales in powers of two, against brute force in float64 and torch's own E4M3."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ditpress.compress.quantize import fp4, power_of_two
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format

# The magnitudes of the three formats as the papers write them, times 2, 4 and 4.
E2M1 = 2 * np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E1M2 = 4 * np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75])
E3M0 = 4 * np.array([0, 0.25, 0.5, 1, 2, 4, 8, 16])
MAGNITUDES = (E2M1, E1M2, E3M0)


def tables() -> np.ndarray:
    """[3, 16]: code = 8 * sign + magnitude."""
    return np.stack([np.concatenate([values, -values]) for values in MAGNITUDES])


def weights(rows: int = 24, groups: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Rows of three kinds: normal, uniform, and with tails over many octaves."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, groups, size, generator=generator)
    uniform = torch.rand(rows, groups, size, generator=generator) * 2 - 1
    octaves = torch.exp2(torch.randint(-6, 1, normal.shape, generator=generator).float()) * normal.sign()
    kind = torch.arange(rows) % 3
    return torch.where(
        (kind == 0)[:, None, None], normal, torch.where((kind == 1)[:, None, None], uniform, octaves)
    )


def moment(columns: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator) * torch.logspace(-1, 1, columns)
    return x.T @ x / len(x)


def dequantize(codes: Tensor, scale: Tensor, table: Tensor) -> np.ndarray:
    entries = tables()[table.numpy()[:, None, None], codes.numpy()]
    return entries * scale.double().numpy()[..., None]


def row_errors(weight: Tensor, values: np.ndarray, importance: np.ndarray) -> np.ndarray:
    return ((weight.double().numpy() - values) ** 2 * importance).sum(axis=(1, 2))


def least_error(group: np.ndarray, magnitudes: np.ndarray, importance: np.ndarray) -> float:
    """Over all float16 scales that a fine search meets, with the nearest entry for every weight."""
    entries = np.concatenate([magnitudes, -magnitudes])
    largest = np.abs(group).max()
    ratios = np.concatenate([np.array(fp4.CLIP_RATIOS), np.linspace(0.2, 1.2, 200)])
    scales = np.float16(np.float32(largest) * np.float32(1) * (ratios / magnitudes.max()).astype(np.float32))
    return min(
        float((np.min((group[:, None] - float(s) * entries) ** 2, axis=1) * importance).sum()) for s in scales
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_table_and_scales_against_brute_force(weighted: bool) -> None:
    weight = weights()
    second = moment(96) if weighted else None
    importance = np.ones((3, 32))
    if second is not None:
        diagonal = second.diagonal().double().numpy()
        importance = (diagonal / diagonal.mean()).reshape(3, 32)
    codes, scale, table = fp4.fit(weight, torch.float16, second)
    assert (codes.dtype, scale.dtype, table.dtype) == (torch.uint8, torch.float16, torch.uint8)
    found = row_errors(weight, dequantize(codes, scale, table), importance)
    best = np.array(
        [
            [
                sum(least_error(g, magnitudes, i) for g, i in zip(row, importance, strict=True))
                for magnitudes in MAGNITUDES
            ]
            for row in weight.double().numpy()
        ]
    )
    # A search 8 times as fine gains next to nothing, in the sum over all rows nothing.
    assert (found <= best.min(axis=1) * 1.05).all()
    assert found.sum() <= best.min(axis=1).sum() * 1.01
    clear = np.sort(best, axis=1)[:, 1] > 1.1 * best.min(axis=1)
    assert clear.any()
    assert (table.numpy()[clear] == best.argmin(axis=1)[clear]).all()
    assert set(table.tolist()) == {0, 1, 2}  # each kind of row has its table


@given(st.integers(0, 2**31), st.floats(1e-6, 1e3))
@settings(max_examples=25, deadline=None)
def test_the_choice_is_never_worse_than_any_single_table(seed: int, size: float) -> None:
    weight = weights(9, 2, 16, seed) * size
    codes, scale, table = fp4.fit(weight, torch.float32)
    chosen = row_errors(weight, dequantize(codes, scale, table), np.ones((2, 16)))
    for index, format in enumerate(fp4.TABLES):
        single, _ = fp4.clip_search(weight, format, torch.float32)
        entries = tables()[index]
        values = weight.double().numpy() / np.maximum(single.double().numpy(), 1e-300)[..., None]
        nearest = entries[np.abs(values[..., None] - entries).argmin(axis=-1)]
        error = row_errors(weight, nearest * single.double().numpy()[..., None], np.ones((2, 16)))
        assert (chosen <= error * (1 + 1e-5)).all()


def test_the_indicator_is_the_nearest_ratio() -> None:
    # Magnitudes with a quartile of 1 and a largest of 4, 12 and 100: nearest 7, 12 and 64.
    rows = []
    for largest in (4.0, 12.0, 100.0):
        rows.append(torch.tensor([0.5, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, largest]) * -0.01)
    assert fp4.indicator(torch.stack(rows)[:, None]).tolist() == [1, 0, 2]
    assert fp4.indicator(torch.zeros(1, 2, 4)).tolist() == [1]
    weight = weights(30)
    codes, scale, table = fp4.fit(weight, torch.float16, choice="indicator")
    assert table.tolist() == fp4.indicator(weight).tolist()
    assert len(set(table.tolist())) > 1
    for row in range(30):
        single, _ = fp4.clip_search(weight[row : row + 1], fp4.TABLES[int(table[row])], torch.float16)
        assert torch.equal(single[0], scale[row])
    error = row_errors(weight, dequantize(codes, scale, table), np.ones((3, 32)))
    best = row_errors(weight, dequantize(*fp4.fit(weight, torch.float16)), np.ones((3, 32)))
    assert best.sum() <= error.sum()


def test_zero_groups_and_rows_stay_zero() -> None:
    weight = torch.zeros(3, 2, 16)
    weight[1, 1] = 0.25
    codes, scale, table = fp4.fit(weight, torch.float16)
    assert dequantize(codes, scale, table) == pytest.approx(weight.numpy(), rel=1e-3)
    assert [*scale[0].tolist(), float(scale[1, 0])] == [0, 0, 0]


def test_codes_are_those_of_the_format() -> None:
    format = get_format("fp4")
    assert (format.tables, format.entries) == (3, 16)
    assert np.array_equal(format.codebook_tensor().view(3, 16).numpy(), tables())


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"fc: weights up to 1e\+07 need scales beyond torch.float16"):
        fp4.fit(torch.full((1, 1, 16), 1e7), torch.float16, name="fc")
    with pytest.raises(InputError, match=r"fc: second moment of its inputs is \[8, 8\], expected \[16, 16\]"):
        fp4.fit(torch.ones(1, 1, 16), torch.float16, torch.eye(8), name="fc")
    with pytest.raises(InputError, match="fc: its inputs are all zero"):
        fp4.fit(torch.ones(1, 1, 16), torch.float16, torch.zeros(16, 16), name="fc")


def test_e2m1_times_a_power_of_two_is_exact_in_e4m3_just_in_the_range() -> None:
    def exact(power: int) -> bool:
        values = torch.tensor([*E2M1 / 2, *-E2M1 / 2]).float() * 2.0**power
        return torch.equal(values.to(torch.float8_e4m3fn).float(), values)

    powers = [power for power in range(-12, 12) if exact(power)]
    assert powers == list(range(power_of_two.LOWEST, power_of_two.HIGHEST + 1))


@given(
    st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(1e-5, 60.0)), min_size=4, max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([torch.float16, torch.float32]),
)
@settings(max_examples=80, deadline=None)
def test_m2_of_zeroquant_fp(rows: list[list[float]], dtype: torch.dtype) -> None:
    scale = torch.tensor(rows, dtype=torch.float64).to(dtype)
    found = power_of_two.constrain(scale)
    assert found.dtype == dtype
    for row, got in zip(scale.double().tolist(), found.double().tolist(), strict=True):
        largest = max(row)
        for free, constrained in zip(row, got, strict=True):
            if free == 0:
                assert constrained == 0
                continue
            exponent = math.log2(largest / constrained)
            assert exponent in range(15)
            # The equation, by trying: the least power of two that is not below S_max / S_i.
            wanted = next(e for e in range(60) if largest <= free * 2**e)
            held = [e for e in range(15) if float(torch.tensor(largest / 2**e).to(dtype)) == largest / 2**e]
            reach = next(e for e in range(15) if e + 1 not in held)
            assert exponent == min(wanted, reach)


def test_constrained_weights_go_through_e4m3_unchanged() -> None:
    """A row's weights over its one real scale, times 2^6: torch's E4M3 holds every one of them."""
    generator = torch.Generator().manual_seed(4)
    spread = torch.exp2(torch.rand(40, 12, 1, generator=generator) * 24 - 12)
    weight = torch.randn(40, 12, 16, generator=generator) * spread
    format = get_format("fp4-e2m1")
    free, _ = fp4.clip_search(weight, format, torch.float32)
    for scale in (power_of_two.constrain(free), power_of_two.search(weight, free)):
        real = scale.amax(dim=1, keepdim=True)
        assert float((real / scale).max()) == 2**14  # the limit is reached, and kept
        halves = torch.from_numpy(E2M1[:, None, None] / 2).float()
        values = halves * (scale / real * 2.0**power_of_two.HIGHEST)
        assert torch.equal(values.to(torch.float8_e4m3fn).float(), values)


def test_the_search_finds_the_least_error_of_all_exponents() -> None:
    weight = weights(12, 3, 16, seed=9) * torch.tensor([1.0, 0.3, 0.06])[:, None]
    free, free_error = fp4.clip_search(weight, fp4.TABLES[0], torch.float32)
    found = power_of_two.search(weight, free)
    entries = tables()[0]

    def error(group: np.ndarray, scale: float) -> float:
        return float(np.min((group[:, None] - scale * entries) ** 2, axis=1).sum())

    for row in range(12):
        groups = weight[row].double().numpy()
        total = sum(error(g, float(s)) for g, s in zip(groups, found[row].double(), strict=True))
        m2 = power_of_two.constrain(free[row : row + 1])[0].double()
        assert total <= sum(error(g, float(s)) for g, s in zip(groups, m2, strict=True)) * (1 + 1e-6)
        largest = float(free[row].max())
        best = min(
            sum(error(g, largest * 2 ** (-step / 8 - e)) for g, e in zip(groups, exponents, strict=True))
            for step in range(8)
            for exponents in product(range(8), repeat=3)
        )
        assert total <= best * (1 + 1e-5)
        ratios = (found[row].max() / found[row]).double().log2()
        assert torch.equal(ratios, ratios.round())
    assert float(free_error.sum()) > 0


def test_negative_scales_have_no_power_of_two() -> None:
    with pytest.raises(InputError, match="a scale is negative"):
        power_of_two.constrain(torch.tensor([[1.0, -0.5]]))
