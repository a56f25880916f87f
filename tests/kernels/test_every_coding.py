"""Every coding on every path of this machine, with folded scales and fused ends, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coded_cases import CODINGS, make_coded_case
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_cases import supported_paths

from ditpress.kernels import cpu
from ditpress.kernels.activations import ACTIVATIONS
from ditpress.kernels.cpu.weights import Fusion
from ditpress.kernels.reference import qlinear_reference

pytestmark = pytest.mark.skipif(cpu.library_path() is None, reason="the C++ kernels are not built")

PATHS = supported_paths()


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=80, deadline=None)
@given(
    coding=st.sampled_from(CODINGS),
    rows=st.one_of(st.integers(1, 14), st.sampled_from([60, 257])),
    out_features=st.integers(1, 140),
    group=st.one_of(st.integers(1, 40), st.sampled_from([64, 128])),
    groups=st.integers(1, 4),
    fold_scales=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    path: str,
    coding: tuple[int, int],
    rows: int,
    out_features: int,
    group: int,
    groups: int,
    fold_scales: bool,
    half: bool,
    seed: int,
) -> None:
    group *= coding[1] if group * groups % coding[1] else 1
    case = make_coded_case(coding, rows, out_features, group, groups, half=half, seed=seed)
    x, bias = torch.from_numpy(case.x), torch.from_numpy(case.bias)
    y = case.packed("int8", path, fold_scales).run(x, bias)
    np.testing.assert_array_equal(y.numpy(), case.expected_int8(fold_scales))

    floats = case.packed("none", path, fold_scales).run(x, bias).numpy()
    weights = case.weights64()
    size = np.abs(case.x).astype(np.float64) @ np.abs(weights).T + np.abs(case.bias)
    error = np.abs(floats - (case.x @ weights.T + case.bias))
    # Kernels may round x to 2**-24 of the largest magnitude of its row.
    step = 2.0**-24 * np.abs(case.x).max(axis=1, keepdims=True) * np.abs(weights).sum(axis=1)
    assert np.all(error <= (case.x.shape[1] + 2) * 2.0**-23 * size + step)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(
    coding=st.sampled_from(CODINGS),
    activation=st.sampled_from([name for name in ACTIVATIONS if name not in ("none", "int8")]),
    rows=st.integers(1, 14),
    out_features=st.integers(1, 140),
    group=st.one_of(st.integers(1, 40), st.sampled_from([64, 128])),
    groups=st.integers(1, 4),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_other_activations(
    path: str,
    coding: tuple[int, int],
    activation: str,
    rows: int,
    out_features: int,
    group: int,
    groups: int,
    half: bool,
    seed: int,
) -> None:
    """The bits of the definition, which is compared with float64 in test_reference.py; nothing is folded."""
    group *= coding[1] if group * groups % coding[1] else 1
    case = make_coded_case(coding, rows, out_features, group, groups, half=half, seed=seed)
    x, bias = torch.from_numpy(case.x), torch.from_numpy(case.bias)
    arguments = [torch.from_numpy(array) for array in (case.codes, case.scale, case.codebook)]
    y = case.packed(activation, path, True).run(x, bias)
    assert torch.equal(y, qlinear_reference(x, *arguments, bias, activation))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ["int8", "none", "uint4", "fp8-e4m3"])
@settings(max_examples=25, deadline=None)
@given(
    items=st.integers(1, 3),
    tokens=st.integers(1, 20),
    out_features=st.integers(1, 140),
    magnitude=st.sampled_from([0.01, 1.0, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_epilogues(
    path: str, activation: str, items: int, tokens: int, out_features: int, magnitude: float, seed: int
) -> None:
    rows = items * tokens
    case = make_coded_case((16, 1), rows, out_features, 24, 2, half=True, seed=seed)
    weight = case.packed(activation, path, False)
    x, bias = torch.from_numpy(case.x) * magnitude, torch.from_numpy(case.bias)
    y = weight.run(x, bias).double()

    gelu = weight.run(x, bias, Fusion(gelu=True)).double()
    right = torch.nn.functional.gelu(y, approximate="tanh")
    assert torch.all((gelu - right).abs() <= 1.5e-5 * y.abs().clamp(min=1.0))

    generator = torch.Generator().manual_seed(seed)
    gate = torch.randn(items, 1, out_features, generator=generator)
    residual = torch.randn(rows, out_features, generator=generator)
    gated = weight.run(x, bias, Fusion(gate=gate, residual=residual)).double()
    product = gate.double().expand(items, tokens, out_features).reshape(rows, out_features) * y
    assert torch.all((gated - (product + residual)).abs() <= 2.0**-23 * (product.abs() + residual.abs()))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None)
@given(
    items=st.integers(1, 3),
    tokens=st.integers(1, 9),
    k=st.integers(1, 150),
    epsilon=st.sampled_from([1e-6, 1e-3]),
    seed=st.integers(0, 2**31),
)
def test_layer_norm_in_front(path: str, items: int, tokens: int, k: int, epsilon: float, seed: int) -> None:
    """Rounding to int8 moves every activation by half a step at most: that bounds the result."""
    rows = items * tokens
    case = make_coded_case((256, 1), rows, 37, k, 1, half=False, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(items, 1, k, generator=generator)
    modulation = torch.randn(items, 1, k, generator=generator)
    x, bias = torch.from_numpy(case.x), torch.from_numpy(case.bias)
    fusion = Fusion(shift=shift, modulation=modulation, epsilon=epsilon)
    y = case.packed("int8", path, False).run(x, bias, fusion).double()

    normal = torch.nn.functional.layer_norm(x.double(), (k,), eps=epsilon).view(items, tokens, k)
    normal = (normal * (1 + modulation.double()) + shift.double()).view(rows, k)
    weights = torch.from_numpy(case.weights64())
    step = normal.abs().amax(dim=1, keepdim=True) / 127
    bound = (0.5 * step + 1e-5 * (1 + step * 127)) * weights.abs().sum(dim=1)
    assert torch.all((y - (normal @ weights.T + bias.double())).abs() <= bound + 1e-5)
