"""The assignment step of k-means on every path of this machine, against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_cases import supported_paths
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels import cpu
from ditpress.kernels.cpu.nearest import run_nearest

pytestmark = pytest.mark.skipif(cpu.library_path() is None, reason="the C++ kernels are not built")

PATHS = supported_paths()


def brute(pull: Tensor, pressure: Tensor, codebook: Tensor) -> np.ndarray:
    """All costs, float64 [M, E]."""
    c = codebook.numpy().astype(np.float64)[None]
    return (pressure.numpy()[:, None] * c * c - 2.0 * pull.numpy()[:, None] * c).sum(axis=-1)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(
    points=st.one_of(st.integers(0, 100), st.sampled_from([2047, 2048, 2049, 4100])),
    length=st.integers(1, 9),
    entries=st.one_of(st.integers(1, 20), st.sampled_from([64, 256])),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_any_shape(path: str, points: int, length: int, entries: int, threads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(entries, length, generator=generator)
    pressure = torch.rand(points, length, generator=generator)
    pressure[pressure < 0.1] = 0.0  # coordinates that do not count
    pull = pressure * torch.randn(points, length, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        codes, cost = run_nearest(pull, pressure, codebook, path)
    finally:
        torch.set_num_threads(before)
    expected = brute(pull, pressure, codebook)
    chosen = np.take_along_axis(expected, codes.numpy()[:, None], axis=1)[:, 0]
    terms = np.abs(pressure.numpy()).sum(axis=1) + np.abs(pull.numpy()).sum(axis=1)
    bound = 1e-6 * (1.0 + terms * float(codebook.abs().max()) ** 2)
    assert np.all(chosen - expected.min(axis=1) <= bound)
    assert np.all(np.abs(cost.numpy() - chosen) <= bound)


@pytest.mark.parametrize("path", PATHS)
def test_of_equal_codewords_the_first(path: str) -> None:
    # Small whole numbers: every cost is exact in float32, so equal ones are equal.
    random = np.random.default_rng(0)
    codebook = torch.from_numpy(random.integers(-3, 4, (200, 3))).float()
    pressure = torch.from_numpy(random.integers(0, 3, (500, 3))).float()
    pull = torch.from_numpy(random.integers(-5, 6, (500, 3))).float()
    expected = brute(pull, pressure, codebook)
    assert np.mean((expected == expected.min(axis=1, keepdims=True)).sum(axis=1) > 1) > 0.5
    codes, cost = run_nearest(pull, pressure, codebook, path)
    assert np.array_equal(codes.numpy(), expected.argmin(axis=1))
    assert np.array_equal(cost.numpy(), expected.min(axis=1))


@pytest.mark.parametrize("path", PATHS)
def test_tensors_may_be_views(path: str) -> None:
    both = torch.randn(50, 2, 4, generator=torch.Generator().manual_seed(0))
    pull, pressure = both[:, 0], both[:, 1].abs()
    codebook = torch.randn(4, 10, generator=torch.Generator().manual_seed(1)).T
    codes, _ = run_nearest(pull, pressure, codebook, path)
    assert np.array_equal(codes.numpy(), brute(pull, pressure, codebook).argmin(axis=1))


@pytest.mark.parametrize("path", PATHS)
def test_costs_that_are_no_number_lose(path: str) -> None:
    codebook = torch.tensor([[torch.nan], [2.0], [torch.inf]])
    pull, pressure = torch.tensor([[1.0], [torch.nan]]), torch.tensor([[1.0], [1.0]])
    codes, cost = run_nearest(pull, pressure, codebook, path)
    assert codes.tolist() == [1, 0]
    assert cost.tolist() == [0.0, torch.inf]


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(5, 4)
    with pytest.raises(InputError, match="a codebook of 0 codewords, expected 1"):
        run_nearest(x, x, torch.zeros(0, 4))
    with pytest.raises(InputError, match="have no coordinates"):
        run_nearest(x[:, :0], x[:, :0], torch.zeros(3, 0))
    with pytest.raises(InputError, match=r"pressure \[4, 4\] and the codebook \[2, 4\]"):
        run_nearest(x, x[:4], torch.zeros(2, 4))
    with pytest.raises(InputError, match=r"the codebook \[2, 3\], expected"):
        run_nearest(x, x, torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"pull is torch.float64 \[5, 4\]"):
        run_nearest(x.double(), x, torch.zeros(2, 4))
    with pytest.raises(InputError, match=r"codebook is torch.float32 \[4\]"):
        run_nearest(x, x, torch.zeros(4))
    with pytest.raises(InputError, match="instruction set 'mmx' is unknown"):
        run_nearest(x, x, torch.zeros(2, 4), "mmx")
