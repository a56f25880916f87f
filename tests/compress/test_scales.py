"""The best of several scales, with the C++ kernels and without, against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditpress.compress.quantize import scales
from ditpress.compress.quantize.grid import grid_of
from ditpress.kernels.formats import FORMATS

SCALARS = [name for name, format in FORMATS.items() if format.vector_length == format.tables == 1]


@pytest.fixture(params=["built", "reference"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "reference":  # as without the C++ kernels
        monkeypatch.setattr(scales, "isa", lambda: request.param)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SCALARS)
def test_the_scale_of_least_error(name: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    groups = torch.randn(20, 3, 16, generator=generator)
    entries = FORMATS[name].codebook_tensor().flatten().double().numpy()
    values = entries[entries >= -127]
    tried = (0.2 + torch.rand(20, 3, 7, generator=generator)) * 2 / float(np.abs(values).max())
    importance = torch.rand(3, 16, generator=generator) if weighted else None
    found, error = scales.best_scales(groups, tried, grid_of(FORMATS[name]), importance)

    w, s = groups.double().numpy(), tried.double().numpy()
    least = ((s[..., None, None] * values - w[:, :, None, :, None]) ** 2).min(axis=-1)
    if importance is not None:
        least *= importance.double().numpy()[:, None, :]
    expected = least.sum(axis=-1)  # [20, 3, 7]
    index = (tried == found[..., None]).int().argmax(dim=-1, keepdim=True)
    chosen = np.take_along_axis(expected, index.numpy(), axis=-1)
    np.testing.assert_allclose(chosen[..., 0], expected.min(axis=-1), rtol=1e-4)
    np.testing.assert_allclose(error.numpy(), expected.min(axis=-1), rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("name", ["int4", "fp4-e2m1"])
def test_of_equal_errors_the_first_and_zero_stays_zero(name: str) -> None:
    groups = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    tried = torch.tensor([[[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]]])
    found, error = scales.best_scales(groups, tried, grid_of(FORMATS[name]))
    assert found.tolist() == [[1.0, 0.0]]
    assert error.tolist() == [[0.0, 0.0]]
    beyond, error = scales.best_scales(groups * 1e30, tried[..., 1:], grid_of(FORMATS[name]))
    assert (float(beyond[0, 0]), float(error[0, 0])) == (1.0, torch.inf)
