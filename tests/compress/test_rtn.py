"""Round to nearest against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditpress.compress.quantize.rtn import CLIP_RATIOS, round_to_nearest, search_scale, split_groups
from ditpress.errors import InputError
from ditpress.kernels.formats import FORMATS, Format

SCALARS = [name for name, format in FORMATS.items() if format.vector_length == format.tables == 1]


def table(format: Format) -> np.ndarray:
    """The usable values: all but int8's -128."""
    values = format.codebook_tensor().flatten().tolist()
    return np.array(sorted({value for value in values if value >= -127}), dtype=np.float64)


def squared_error(group: np.ndarray, scale: float, values: np.ndarray) -> float:
    """Of one group with the best entry for every weight, by looking at all of them."""
    return float(np.min((group[:, None] - scale * values) ** 2, axis=1).sum())


def brute_force(group: np.ndarray, format: Format, dtype: type) -> float:
    """Least squared error over all clips and both signs of the scale, in float64."""
    values = table(format)
    anchor = min(-values.min(), values.max())
    largest = np.float32(np.abs(group).max())
    scales = [float(dtype(np.float32(largest * np.float32(ratio / anchor)))) for ratio in CLIP_RATIOS]
    signs = (1, -1) if -values.min() > values.max() else (1,)
    return min(squared_error(group, sign * scale, values) for scale in scales for sign in signs)


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("group", [16, 48])
def test_scale_is_the_best_clip_and_codes_are_nearest(name: str, group: int) -> None:
    format = FORMATS[name]
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(12, 96, generator=generator) * torch.rand(12, 1, generator=generator) * 0.1
    weight[0, :group] *= torch.where(
        torch.arange(group) == 3, 20.0, 1.0
    )  # an outlier, which clipping must weigh
    groups = split_groups(weight, group)
    scale = search_scale(groups, format, torch.float16)
    codes = round_to_nearest(groups, scale, format)
    entries = format.codebook_tensor()[:, 0].double().numpy()
    for row in range(12):
        for index in range(96 // group):
            values = groups[row, index].double().numpy()
            chosen = float(scale[row, index].double())
            error = float(((values - chosen * entries[codes[row, index].numpy()]) ** 2).sum())
            # Nearest codes for this scale; and no other candidate does better, but where the sign of the
            # scale is chosen by the largest weight alone the other sign may, by a little.
            assert error == pytest.approx(squared_error(values, chosen, table(format)), rel=1e-4)
            slack = 1.35 if name == "int4" else 1.0001
            assert error <= brute_force(values, format, np.float16) * slack


def test_int4_uses_its_sixteenth_level() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    groups = split_groups(weight, 64)
    scale = search_scale(groups, FORMATS["int4"], torch.float16)
    codes = round_to_nearest(groups, scale, FORMATS["int4"]).double() - 8
    error = ((codes * scale.double()[..., None] - groups.double()) ** 2).sum()
    symmetric = sum(
        min(
            float((((g / s).round().clamp(-7, 7) * s - g) ** 2).sum())
            for s in (g.abs().max() * ratio / 7 for ratio in CLIP_RATIOS)
        )
        for g in groups.double().reshape(-1, 64)
    )
    assert error < 0.95 * symmetric


def test_int8_never_stores_minus_128() -> None:
    weight = -torch.rand(8, 32, generator=torch.Generator().manual_seed(2))
    groups = split_groups(weight, 32)
    scale = search_scale(groups, FORMATS["int8"], torch.float32)
    assert int(round_to_nearest(groups, scale, FORMATS["int8"]).min()) >= 1
    assert bool((scale > 0).all())


@pytest.mark.parametrize("name", SCALARS)
def test_zero_groups_stay_zero(name: str) -> None:
    format = FORMATS[name]
    weight = torch.zeros(3, 2, 16)
    weight[1, 1] = 0.5
    scale = search_scale(weight, format, torch.float16)
    codes = round_to_nearest(weight, scale, format)
    values = format.codebook_tensor().double()[codes.long(), 0] * scale.double()[..., None]
    assert bool((values[weight == 0] == 0).all())
    assert values[1, 1].numpy() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("name", ["ternary", "ternary-2bit"])
def test_ternary_scale_is_the_optimum(name: str) -> None:
    """Against every choice of the weights that are not zero, also where one weight dwarfs the others."""
    format = FORMATS[name]
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(40, 1, 9)).astype(np.float32)
    weight[:20, 0, 0] *= 30
    scale = search_scale(torch.from_numpy(weight), format, torch.float32)
    codes = round_to_nearest(torch.from_numpy(weight), scale, format)
    assert int(codes.max()) == 2  # the fourth code of ternary-2bit stays unused
    values = (codes.double() - 1) * scale.double()[..., None]
    subsets = (np.arange(1, 2**9)[:, None] >> np.arange(9) & 1).astype(np.float64)
    for row in range(40):
        size = np.abs(weight[row, 0]).astype(np.float64)
        least = (size**2).sum() - ((subsets @ size) ** 2 / subsets.sum(1)).max()
        error = float(((values[row, 0].numpy() - weight[row, 0]) ** 2).sum())
        assert error == pytest.approx(least, rel=1e-5)


@given(st.floats(1e-30, 1e3), st.integers(0, 2**31), st.sampled_from(["int4", "nf4", "int8"]))
@settings(max_examples=40, deadline=None)
def test_error_is_bounded_at_every_magnitude(size: float, seed: int, name: str) -> None:
    weight = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(seed)) * size
    format = FORMATS[name]
    scale = search_scale(weight, format, torch.float32)
    codes = round_to_nearest(weight, scale, format)
    values = format.codebook_tensor().double()[codes.long(), 0] * scale.double()[..., None]
    error = (values - weight.double()).norm() / weight.double().norm()
    assert float(error) < (0.02 if name == "int8" else 0.2)


def test_refusals_name_the_layer_and_the_remedy() -> None:
    with pytest.raises(
        InputError, match=r"blocks\.0\.fc: K = 72 is not divisible by the group 64; use a group of 72"
    ):
        split_groups(torch.zeros(4, 72), 64, "blocks.0.fc")
    broken = torch.zeros(4, 64)
    broken[1, 1] = float("nan")
    with pytest.raises(InputError, match=r"blocks\.0\.fc holds NaN"):
        split_groups(broken, 64, "blocks.0.fc")
    with pytest.raises(InputError, match="fc: weights up to 1e\\+06 need scales beyond"):
        search_scale(torch.full((1, 1, 4), 1e6), FORMATS["int4"], torch.float16, "fc")
    for vectors in (Format("vq", 2, ((1, 2), (3, 4)), 2), FORMATS["vq-64x2"]):
        with pytest.raises(InputError, match="vectors of 2 weights"):
            search_scale(torch.ones(1, 1, 4), vectors, torch.float16)
