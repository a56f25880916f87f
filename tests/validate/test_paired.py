import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ditpress.errors import InputError
from ditpress.validate import paired
from ditpress.validate.extractor import FeatureExtractor


def pair(count: int, channels: int = 1, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(count, channels, size, size, generator=generator)
    return a, (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def test_psnr_is_its_definition_over_all_pixels_of_all_pairs() -> None:
    a, b = pair(70)  # more than one batch
    mse = float(((a.double() - b.double()) ** 2).mean())
    assert paired.psnr(a, b) == pytest.approx(10 * math.log10(1 / mse), abs=1e-4)


def test_psnr_of_equal_images_is_finite() -> None:
    a, _ = pair(2)
    assert paired.psnr(a, a) == paired.MAX_DB


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_formula_with_scipys_gaussian_window(channels: int) -> None:
    a, b = pair(66, channels)
    c1, c2 = 0.01**2, 0.03**2

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, mode="mirror", radius=5)

    values = []
    for x, y in zip(
        a.double().numpy().reshape(-1, 28, 28), b.double().numpy().reshape(-1, 28, 28), strict=True
    ):
        mu_x, mu_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2
        covariance = blur(x * y) - mu_x * mu_y
        numerator = (2 * mu_x * mu_y + c1) * (2 * covariance + c2)
        values.append((numerator / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean())
    assert paired.ssim(a, b) == pytest.approx(np.mean(values), abs=1e-5)


def test_feature_distance_is_zhang_equation_1_with_unit_weights(extractor: FeatureExtractor) -> None:
    a, b = pair(3)
    total = 0.0
    for index in range(3):
        layers = zip(extractor.patch_features(a[[index]]), extractor.patch_features(b[[index]]), strict=True)
        for f, g in layers:
            f_hat, g_hat = (v[0].double().numpy() for v in (f, g))
            f_hat /= np.linalg.norm(f_hat, axis=1, keepdims=True)
            g_hat /= np.linalg.norm(g_hat, axis=1, keepdims=True)
            total += ((f_hat - g_hat) ** 2).sum(1).mean()
    assert total > 0
    assert paired.feature_distance(extractor, a, b) == pytest.approx(total / 3, rel=1e-4)
    assert paired.feature_distance(extractor, a, a) == 0


@dataclass
class Call:
    timestep: float
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Output:
    sample: torch.Tensor

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.sample,)[index]


def test_output_sqnr_over_all_calls_and_per_timestep() -> None:
    generator = torch.Generator().manual_seed(0)
    calls = [Call(t, {"x": torch.randn(2, 3, generator=generator)}) for t in (900.0, 100.0, 900.0)]
    noise = [0.1 * torch.randn(2, 3, generator=generator) for _ in calls]
    queue = iter(noise)
    result = paired.output_sqnr(lambda x: Output(x), lambda x: (x + next(queue),), calls)

    def sqnr(members: list[int]) -> float:
        signal = sum(float((calls[i].kwargs["x"].double() ** 2).sum()) for i in members)
        error = sum(float((noise[i].double() ** 2).sum()) for i in members)
        return 10 * math.log10(signal / error)

    assert result.total_db == pytest.approx(sqnr([0, 1, 2]), abs=1e-4)
    assert list(result.by_timestep) == [100.0, 900.0]
    assert result.by_timestep[900.0] == pytest.approx(sqnr([0, 2]), abs=1e-4)
    assert result.by_timestep[100.0] == pytest.approx(sqnr([1]), abs=1e-4)


def test_output_sqnr_of_equal_outputs_is_finite() -> None:
    result = paired.output_sqnr(lambda x: x, lambda x: x, [Call(1.0, {"x": torch.ones(2)})])
    assert result.total_db == paired.MAX_DB


def test_what_does_not_pair_up_is_refused() -> None:
    a, b = pair(3)
    with pytest.raises(InputError, match="one pair per seed"):
        paired.psnr(a, b[:2])
    with pytest.raises(InputError, match="no recorded calls"):
        paired.output_sqnr(lambda x: x, lambda x: x, [])
