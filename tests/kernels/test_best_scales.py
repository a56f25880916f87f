"""The search for scales on every path of this machine, against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_cases import supported_paths

from ditpress.errors import InputError
from ditpress.kernels import cpu
from ditpress.kernels.cpu.scales import run_best_scales

pytestmark = pytest.mark.skipif(cpu.library_path() is None, reason="the C++ kernels are not built")

PATHS = supported_paths()
TABLES: dict[str, list[int]] = {
    "int8": list(range(-127, 128)),
    "int4": list(range(-8, 8)),
    "unsigned": list(range(16)),
    "e2m1": [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12],
    "without zero": [-127, -30, -5, 1, 9, 100],
}


def halves(table: list[int]) -> torch.Tensor | None:
    """The value nearest to x at floor(2 x) - 2 low, of two the upper one; None: uniform."""
    if table == list(range(table[0], table[-1] + 1)):
        return None
    middle = (np.arange(2 * table[0], 2 * table[-1] + 1) + 0.5) / 2  # inside the half: no ties
    distance = np.abs(middle[:, None] - np.array(table))
    return torch.tensor([float(table[index]) for index in distance.argmin(axis=1)])


def brute(weight: torch.Tensor, scale: torch.Tensor, table: list[int], importance: np.ndarray) -> np.ndarray:
    """Error of every scale with the value that is best for each weight, float64 [R, C]."""
    w, s = weight.double().numpy()[:, None, :, None], scale.double().numpy()[:, :, None, None]
    least = ((s * np.array(table, dtype=np.float64) - w) ** 2).min(axis=-1)
    return (least * importance[np.arange(len(weight)) % len(importance)][:, None]).sum(axis=-1)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(
    groups=st.one_of(st.integers(0, 20), st.sampled_from([130, 700])),
    group=st.one_of(st.integers(1, 40), st.sampled_from([64, 144])),
    tried=st.integers(1, 9),
    name=st.sampled_from(list(TABLES)),
    weighted=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    path: str, groups: int, group: int, tried: int, name: str, weighted: bool, threads: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = TABLES[name]
    weight = torch.randn(groups, group, generator=generator)
    scale = (0.05 + torch.rand(groups, tried, generator=generator)) * 2.0 / max(table)
    if -table[0] > table[-1]:
        scale = scale * (torch.rand(groups, tried, generator=generator) - 0.5).sign()
    importance = torch.rand(3, group, generator=generator) if weighted else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        best, error = run_best_scales(
            weight, scale, table[0], table[-1], halves(table), importance, path=path
        )
    finally:
        torch.set_num_threads(before)
    ones = np.ones((1, group))
    expected = brute(weight, scale, table, ones if importance is None else importance.double().numpy())
    chosen = np.take_along_axis(expected, best.numpy()[:, None], axis=1)[:, 0]
    # Float32 values w and s v are rounded, and so their small differences are: by a part of w² and |w| left.
    bound = 1e-5 * chosen + 1e-6 * group
    assert np.all(chosen - expected.min(axis=1) <= bound)
    assert np.all(np.abs(error.numpy() - chosen) <= bound)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", TABLES)
def test_of_equal_scales_the_first(path: str, name: str) -> None:
    table = TABLES[name]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 24, generator=generator)
    scale = (0.3 + torch.rand(50, 3, generator=generator)) / max(table)
    doubled = torch.cat((scale, scale, scale), dim=1)[:, [0, 3, 1, 4, 6, 2, 5]]
    best, _ = run_best_scales(weight, doubled, table[0], table[-1], halves(table), path=path)
    assert set(best.tolist()) == {0, 2, 5}


@pytest.mark.parametrize("path", PATHS)
def test_views_zero_scales_and_what_is_no_number(path: str) -> None:
    weight = torch.tensor([[1.0, -1.0, 2.0], [0.0, 0.0, 0.0], [torch.nan, 1.0, 1.0]]).T.contiguous().T
    scale = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 2.0]])
    best, error = run_best_scales(weight, scale, -8, 7, path=path)
    assert best.tolist() == [1, 0, 0]
    assert error.tolist() == [0.0, 0.0, torch.inf]


def test_what_does_not_fit_is_refused() -> None:
    weight, scale = torch.zeros(6, 8), torch.ones(6, 3)
    for arguments, message in (
        ((weight, scale[:5], -8, 7), r"scale is \[5, 3\] for weights \[6, 8\]"),
        ((weight, scale[:, :0], -8, 7), "weights with 0 scales to try"),
        ((weight[:, :0], scale, -8, 7), "groups of 0 weights"),
        ((weight, scale, 7, -8), "values from 7"),
        ((weight, scale, -400, 7), "within -128 and 128"),
        ((weight, scale, -8, 7, torch.zeros(30)), r"values is \[1, 30\]"),
        ((weight, scale, -8, 7, None, torch.ones(2, 7)), r"importance is \[2, 7\]"),
        ((weight, scale, -8, 7, None, torch.ones(0, 8)), "importance has no rows"),
        ((weight.double(), scale, -8, 7), r"weight is torch.float64 \[6, 8\]"),
        ((weight, scale, -8, 7, None, None, "mmx"), "instruction set 'mmx' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            run_best_scales(*arguments)  # type: ignore[arg-type]
