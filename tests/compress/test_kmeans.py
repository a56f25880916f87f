"""Weighted k-means against SciPy, brute force in float64 and its own promises."""

from __future__ import annotations

import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ditpress.compress.quantize import kmeans
from ditpress.errors import InputError


def points(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(count: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, length, generator=generator, dtype=torch.float64) + 0.05


def brute_distances(x: Tensor, b: Tensor, codebook: Tensor) -> Tensor:
    """sum_d b (x - c)², [M, E]."""
    return (b[:, None, :] * (x[:, None, :] - codebook[None, :, :]).square()).sum(dim=-1)


def test_lloyd_is_that_of_scipy() -> None:
    x = points(600, 4)
    start = x[:16].clone()
    expected, labels = kmeans2(x.numpy(), start.numpy(), iter=12, minit="matrix")
    codebook, codes = kmeans.lloyd(x, torch.ones_like(x), start, 12)
    torch.testing.assert_close(codebook, torch.from_numpy(expected))
    assert torch.equal(codes, torch.from_numpy(labels).long())


def test_centroids_minimise_the_weighted_error() -> None:
    x, b = points(300, 2), weights(300, 2)
    start = x[:8].clone()
    codebook, codes = kmeans.lloyd(b * x, b, start, 50)
    cost = (b * (x - codebook[codes]).square()).sum()
    for sign in (1e-3, -1e-3):
        for entry in range(codebook.numel()):
            moved = codebook.clone()
            moved.view(-1)[entry] += sign
            assert (b * (x - moved[codes]).square()).sum() > cost


@pytest.mark.parametrize("chunk", [1, 37, 1 << 20])
def test_chunks_equal_brute_force(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(kmeans, "CHUNK", chunk)
    x, b, codebook = points(101, 4), weights(101, 4), points(7, 4, seed=2)
    distances = brute_distances(x, b, codebook)
    codes, cost = kmeans.nearest(b * x, b, codebook)
    own = (b * x.square()).sum(dim=1)
    assert torch.equal(codes, distances.argmin(dim=1))
    torch.testing.assert_close(cost + own, distances.amin(dim=1))
    few, costs = kmeans.nearest_few(b * x, b, codebook, 3)
    ordered = distances.sort(dim=1)
    assert torch.equal(few, ordered.indices[:, :3])
    torch.testing.assert_close(costs + own[:, None], ordered.values[:, :3])


@pytest.mark.parametrize("path", ["built", "reference"])
def test_nearest_of_float32_is_that_of_float64(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    if path == "reference":  # as without the C++ kernels
        monkeypatch.setattr(kmeans, "isa", lambda: path)
    x, b, codebook = points(500, 4).float(), weights(500, 4).float(), points(40, 4, seed=2).float()
    codes, cost = kmeans.nearest(b * x, b, codebook)
    distances = brute_distances(x.double(), b.double(), codebook.double())
    assert torch.equal(codes, distances.argmin(dim=1))
    own = (b.double() * x.double().square()).sum(dim=1)
    torch.testing.assert_close(cost.double() + own, distances.amin(dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nearest_refuses_what_is_not_finite(dtype: torch.dtype, bad: float) -> None:
    x, ones = torch.zeros(40, 2, dtype=dtype), torch.ones(40, 2, dtype=dtype)
    codebook = torch.ones(3, 2, dtype=dtype)
    for at in (0, 39):
        broken = x.clone()
        broken[at, 1] = bad
        with pytest.raises(InputError, match="no finite numbers; check the weights"):
            kmeans.nearest(broken, ones, codebook)
        with pytest.raises(InputError, match="no finite numbers; check the weights"):
            kmeans.nearest(x, broken, codebook)
    codebook[1, 0] = bad
    with pytest.raises(InputError, match="codebook holds NaN or infinite values"):
        kmeans.nearest(x, ones, codebook)


def test_memory_is_one_chunk_of_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "CHUNK", 512)
    largest = []
    original = kmeans.costs

    def watched(pull: Tensor, pressure: Tensor, codebook: Tensor) -> Tensor:
        found = original(pull, pressure, codebook)
        largest.append(found.numel())
        return found

    monkeypatch.setattr(kmeans, "costs", watched)
    x = points(1000, 2)
    kmeans.lloyd(x, torch.ones_like(x), x[:16].clone(), 2)
    assert max(largest) <= 512
    assert len(largest) >= 1000 * 16 // 512


def test_repair_leaves_no_empty_cluster_and_less_error() -> None:
    x, b = points(200, 2), weights(200, 2)
    codebook = torch.cat((x[:3], x.new_full((5, 2), 1e3)))  # five codewords where no point is
    codes, _ = kmeans.nearest(b * x, b, codebook)
    before = (b * (x - codebook[codes]).square()).sum()
    assert int((torch.bincount(codes, minlength=8) == 0).sum()) == 5
    fixed, moved = kmeans.repair(b * x, b, codes, codebook)
    assert bool((torch.bincount(fixed, minlength=8) > 0).all())
    assert (b * (x - moved[fixed]).square()).sum() < before
    worst = torch.bincount(codes, weights=(b * (x - codebook[codes]).square()).sum(dim=1)).argmax()
    assert bool((fixed[codes == worst] >= 3).any())  # the cluster with most error gave members away


def test_repair_with_as_many_codewords_as_points_meets_every_point() -> None:
    x = points(12, 2)
    start = x[:1].repeat(12, 1)
    codebook, codes = kmeans.lloyd(x, torch.ones_like(x), start, 3)
    assert sorted(codes.tolist()) == list(range(12))
    torch.testing.assert_close(codebook[codes], x)


def test_repair_gives_up_where_all_points_are_equal() -> None:
    x = torch.ones(20, 2)
    codebook, codes = kmeans.lloyd(x, torch.ones_like(x), torch.zeros(4, 2), 5)
    torch.testing.assert_close(codebook[codes], x)


def test_plus_plus_draws_distinct_points_by_their_distance() -> None:
    # Nine points on one spot and one far away: the second codeword must be on the other spot.
    x = torch.zeros(10, 2)
    x[4] = 5.0
    ones = torch.ones_like(x)
    for seed in range(20):
        drawn = kmeans.plus_plus(x, ones, 2, torch.Generator().manual_seed(seed))
        assert sorted(drawn[:, 0].tolist()) == [0.0, 5.0]
    cloud = points(50, 3)
    drawn = kmeans.plus_plus(cloud, torch.ones_like(cloud), 50, torch.Generator().manual_seed(3))
    assert len(drawn.unique(dim=0)) == 50
    again = kmeans.plus_plus(cloud, torch.ones_like(cloud), 50, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, again)


def test_plus_plus_draws_in_proportion_to_the_weighted_squared_distance() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    b = torch.tensor([[1.0], [6.0], [1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    counts = {1.0: 0, 2.0: 0}
    while sum(counts.values()) < 600:
        first, second = kmeans.plus_plus(b * x, b, 2, generator).flatten().tolist()
        if first == 0.0:
            counts[second] += 1
    assert counts[1.0] / 600 == pytest.approx(6 / (6 + 4), abs=0.07)  # b d²: 6 · 1² against 1 · 2²


def test_channels_without_weight_do_no_harm() -> None:
    x, b = points(100, 4).float(), weights(100, 4).float()
    b[:, 2] = 0.0
    start = kmeans.plus_plus(b * x, b, 8, torch.Generator().manual_seed(0))
    codebook, codes = kmeans.lloyd(b * x, b, start, 10)
    assert bool(torch.isfinite(codebook).all())
    kept = [0, 1, 3]
    reference, same = kmeans.lloyd((b * x)[:, kept], b[:, kept], start[:, kept], 10)
    assert torch.equal(codes, same)
    torch.testing.assert_close(codebook[:, kept], reference)
