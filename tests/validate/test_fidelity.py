import numpy as np
import pytest
import scipy.linalg
import torch

from ditpress.errors import InputError
from ditpress.validate import fidelity


def features(count: int, dimension: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension))
    return torch.from_numpy(rng.normal(size=(count, dimension)) @ mixing + shift).float()


@pytest.mark.parametrize("counts", [(200, 300), (9, 40)], ids=["full rank", "rank deficient"])
def test_fid_is_the_formula_with_scipys_matrix_square_root(counts: tuple[int, int]) -> None:
    a, b = features(counts[0], 12, 0, 0.3), features(counts[1], 12, 1)
    x, y = a.double().numpy(), b.double().numpy()
    sigma_x, sigma_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # sqrt(S_x)^T S_y sqrt(S_x) is symmetric: its root exists whatever the rank
    half = scipy.linalg.sqrtm(sigma_x).real
    root = scipy.linalg.sqrtm(half @ sigma_y @ half).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sigma_x + sigma_y - 2 * root)
    assert fidelity.fid(a, b) == pytest.approx(expected, rel=1e-6)


def test_fid_of_two_gaussians_that_differ_in_the_mean_only() -> None:
    a = features(50, 6, 0)
    shift = torch.tensor([3.0, 0, 0, 4.0, 0, 0])
    assert fidelity.fid(a, a + shift) == pytest.approx(25, rel=1e-5)
    assert fidelity.fid(a, a) == pytest.approx(0, abs=1e-9)
    assert fidelity.fid(a, a) >= 0


def unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Bińkowski et al. 2018, eq. 4, written out as sums over pairs."""
    dimension = x.shape[1]

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return float((u @ v / dimension + 1) ** 3)

    m, n = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * sum(kernel(u, v) for u in x for v in y) / (m * n)


def test_kid_of_small_sets_is_the_unbiased_mmd() -> None:
    a, b = features(20, 5, 0, 0.2), features(20, 5, 1)  # one subset is the whole set
    expected = unbiased_mmd(a.double().numpy(), b.double().numpy())
    assert fidelity.kid(a, b) == pytest.approx(expected, rel=1e-9)


def test_kid_of_large_sets_averages_over_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "KID_SUBSET_SIZE", 12)
    monkeypatch.setattr(fidelity, "KID_SUBSETS", 4)
    a, b = features(30, 3, 0, 0.5), features(25, 3, 1)
    generator = torch.Generator().manual_seed(7)
    scores = []
    for _ in range(4):
        y = b[torch.randperm(25, generator=generator)[:12]]
        x = a[torch.randperm(30, generator=generator)[:12]]
        scores.append(unbiased_mmd(x.double().numpy(), y.double().numpy()))
    assert fidelity.kid(a, b, seed=7) == pytest.approx(np.mean(scores), rel=1e-9)


def test_kid_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fidelity.kid(features(10, 3, 0), features(10, 3, 1))
    assert torch.equal(torch.rand(3), expected)


def test_clip_score_is_the_mean_cosine_times_100() -> None:
    images = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    texts = torch.tensor([[4.0, 3.0], [1.0, 1.0]])
    expected = 100 * (24 / 25 + 1 / 2**0.5) / 2
    assert fidelity.clip_score(images, texts) == pytest.approx(expected, rel=1e-6)
    assert fidelity.clip_score(images, -texts) == 0  # clamped


def test_rank_warning_appears_up_to_as_many_samples_as_features() -> None:
    assert fidelity.rank_warning("samples", 65, 64) is None
    sentence = fidelity.rank_warning("samples", 64, 64)
    assert sentence is not None
    assert "64 samples" in sentence
    assert "at least 65" in sentence


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        fidelity.fid(torch.rand(1, 4), torch.rand(5, 4))
    with pytest.raises(InputError, match="same extractor"):
        fidelity.kid(torch.rand(5, 4), torch.rand(5, 3))
    with pytest.raises(InputError, match="one caption per image"):
        fidelity.clip_score(torch.rand(5, 4), torch.rand(4, 4))
