"""The definition of the op against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qlinear_cases import ALL, expected64, make_case, weights64

from ditpress.kernels import reference
from ditpress.kernels.activations import ACTIVATIONS, quantize_activations
from ditpress.kernels.packing import pack
from ditpress.kernels.reference import dequantize, qlinear_reference

EPS = 2.0**-23


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("group", "groups"), [(48, 1), (16, 3), (7, 4), (1, 8)])
@pytest.mark.parametrize("name", ALL)
def test_reference_against_float64(name: str, group: int, groups: int, activation: str, fold: bool) -> None:
    case = make_case(name, 9, 11, group, groups, half=groups > 1)
    expected, size = expected64(case, activation, fold and groups > 1)
    y = qlinear_reference(*case.all_arguments(activation, fold)).numpy()
    # One or two roundings per group and a few at the end. none: K products and additions.
    steps = group * groups + 2 if activation == "none" else 2 * groups + 4
    assert np.all(np.abs(y - expected) <= steps * EPS * size)


def test_quantized_rows_round_half_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.6]])
    q, a = quantize_activations(x, "int8", 7)
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -127]]
    assert a.tolist() == [[1.0]]


def test_row_factors_are_rounded_once() -> None:
    """Values that lie on or beside a rounding tie, where any other way to divide gives other codes."""
    generator = np.random.default_rng(0)
    amax = generator.uniform(1e-6, 1e6, (2000, 1)).astype(np.float32)
    ties = (np.arange(126) + 0.5) * amax / 127
    x = np.concatenate([amax, ties.astype(np.float32)], axis=1)
    q, a = quantize_activations(torch.from_numpy(x), "int8", 127)
    assert np.array_equal(a.numpy(), amax / np.float32(127))
    assert np.array_equal(q.numpy(), np.rint(x * (np.float32(127) / amax)))


def test_int8_is_bit_for_bit_the_written_order() -> None:
    """One element by hand, with numpy's float32 rounding at each step of the definition."""
    case = make_case("nf4", 1, 1, 5, 3)
    x, scale, f = case.x.numpy()[0], case.scale.numpy()[0], np.float32(0)
    amax = np.abs(x).max()
    q = np.rint(x * (np.float32(127) / amax)).astype(np.int64)
    integers = np.rint(weights64(case)[0] / np.repeat(scale, 5)).astype(np.int64)
    for g in range(3):
        acc = np.float32((q * integers)[g * 5 : g * 5 + 5].sum())
        f = np.float32(np.float64(acc) * np.float64(scale[g]) + np.float64(f))
    y = np.float32(np.float64(f) * np.float64(amax / np.float32(127)) + np.float64(case.bias.numpy()[0]))
    assert qlinear_reference(*case.arguments("int8")).item() == y


def test_large_groups_stay_exact() -> None:
    """Sums beyond 2**24, which float32 could not hold."""
    k = 4096
    x = torch.ones(1, k)
    x[0, 0] = 1 / 127  # quantized to 1 beside 127
    codes = pack(torch.full((1, k), 255, dtype=torch.uint8), 256)
    codebook = torch.arange(-128, 128, dtype=torch.int8).unsqueeze(1)
    y = qlinear_reference(x, codes, torch.ones(1, 1), codebook, None, "int8")
    exact = 127 * (127 * (k - 1) + 1)
    assert exact > 2**24
    assert y.item() == np.float32(np.float64(np.float32(exact)) * np.float64(np.float32(1) / np.float32(127)))


def test_vector_codebook() -> None:
    """d = 4: one code stands for four weights along K."""
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randint(-128, 128, (16, 4), generator=generator).to(torch.int8)
    codes = torch.randint(0, 16, (3, 6), generator=generator).to(torch.uint8)
    scale, x = torch.rand(3, 2, generator=generator), torch.randn(2, 24, generator=generator)
    weight = codebook.double()[codes.long()].reshape(3, 2, 12) * scale.double()[..., None]
    weight = weight.reshape(3, 24)
    assert torch.equal(dequantize(pack(codes, 16), scale, codebook, 24), weight.float())
    y = qlinear_reference(x, pack(codes, 16), scale, codebook, None, "none")
    torch.testing.assert_close(y.double(), x.double() @ weight.T, rtol=1e-5, atol=1e-4)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case("fp4-e2m1", 37, 19, 16, 2)
    whole = qlinear_reference(*case.arguments("int8"))
    monkeypatch.setattr(reference, "_CHUNK", 100)
    assert torch.equal(qlinear_reference(*case.arguments("int8")), whole)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_without_a_scale(activation: str) -> None:
    """A zero row and one too small to divide by give the bias, a row with NaN or infinity gives NaN."""
    case = make_case("int4", 6, 5, 8, 2)
    case.x[0], case.x[1] = 0.0, 1e-40
    case.x[2, 3], case.x[3, 3], case.x[4, 3] = torch.nan, torch.inf, -torch.inf
    y = qlinear_reference(*case.arguments(activation))
    assert case.bias is not None
    assert torch.equal(y[0], case.bias)
    torch.testing.assert_close(y[1], case.bias, rtol=0, atol=0 if activation != "none" else 1e-38)
    assert y[2:5].isnan().all()
    assert y[5].isfinite().all()
