"""Every metric against scipy, torchmetrics, torch-fidelity or the paper's equation written out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.distance import cdist
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from ditpress.errors import InputError
from ditpress.validate import bootstrap, fidelity
from ditpress.validate.metrics import inception_score as inception
from ditpress.validate.metrics import mmd
from ditpress.validate.metrics.cmmd import cmmd, kernel_means
from ditpress.validate.metrics.frechet import Moments, frechet, moments
from ditpress.validate.metrics.precision_recall import covered, inside, precision_recall, radii


def features(count: int, dimension: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension))
    return torch.from_numpy(rng.normal(size=(count, dimension)) @ mixing + shift).float()


@pytest.mark.parametrize("counts", [(200, 300), (9, 40)], ids=["full rank", "rank deficient"])
def test_frechet_agrees_with_scipy_and_torchmetrics(counts: tuple[int, int]) -> None:
    a, b = features(counts[0], 12, 0, 0.3), features(counts[1], 12, 1)
    x, y = a.double().numpy(), b.double().numpy()
    sigma_x, sigma_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sigma_x @ sigma_y + 1e-12 * np.eye(12)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sigma_x + sigma_y - 2 * root)
    found = frechet(moments(a), moments(b))
    assert found == pytest.approx(expected, rel=1e-4)
    metric = FrechetInceptionDistance(feature=fidelity.Precomputed(12))
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "seed"), [(4, 4, 1), (2, 16, 2023), (64, 64, 2023), (4096, 16, 2023)]
)
def test_frechet_of_torch_fidelitys_test_vectors(rows: int, columns: int, seed: int) -> None:
    """The vectors of torch-fidelity's tests/torch_pure/misc/test_fid_stats_fn.py, to its five places.

    The first made an earlier version of it NaN; products of rank-deficient covariances are among them.
    """
    rng = np.random.RandomState(seed)
    x, y = rng.randn(rows, columns), rng.randn(rows, columns)
    sigmas = [np.cov(features, rowvar=False) for features in (x, y)]
    roots = np.sqrt(np.linalg.eigvals(sigmas[0] @ sigmas[1]).astype(complex)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sigmas[0] + sigmas[1]) - 2 * roots.sum()
    found = frechet(*(moments(torch.from_numpy(features)) for features in (x, y)))
    assert found == pytest.approx(expected, abs=1e-5)


def test_moments_of_counts_are_those_of_repeated_rows() -> None:
    a = features(6, 4, 0)
    counts = torch.tensor([2, 0, 1, 3, 1, 0])
    found, repeated = moments(a, counts), a.repeat_interleave(counts, 0).double().numpy()
    np.testing.assert_allclose(found.mean.numpy(), repeated.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(repeated, rowvar=False), rtol=1e-9)


def test_moments_of_another_extractor_are_refused() -> None:
    with pytest.raises(InputError, match="same extractor"):
        frechet(moments(features(9, 3, 0)), Moments(torch.zeros(4), torch.eye(4)))


def test_unbiased_mmd_is_the_sum_over_pairs_and_kid_of_one_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmd, "ROWS", 7)  # several blocks of rows
    a, b = features(20, 5, 0, 0.2), features(20, 5, 1)
    x, y = a.double().numpy(), b.double().numpy()
    kernel = lambda u, v: (u @ v.T / 5 + 1) ** 3  # noqa: E731
    off = ~np.eye(20, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    found = mmd.mmd(a, b, mmd.polynomial, unbiased=True)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found == pytest.approx(fidelity.kid(a, b), rel=1e-6)


def test_resampled_mmd_is_that_of_the_rows_drawn() -> None:
    a, b = features(6, 3, 0), features(5, 3, 1)
    counts = torch.tensor([[1, 2, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).double()
    once = torch.ones(1, 5, dtype=torch.float64)
    kernel = mmd.gaussian(2.0)
    found = mmd.resampled(a, b, kernel, counts, once, unbiased=False)
    for row, value in zip(counts, found, strict=True):
        x, y = a.repeat_interleave(row.long(), 0).double().numpy(), b.double().numpy()
        k = lambda u, v: np.exp(-cdist(u, v, "sqeuclidean") / 8)  # noqa: E731
        assert float(value) == pytest.approx(k(x, x).mean() - 2 * k(x, y).mean(), rel=1e-9)


def test_cmmd_is_the_papers_formula_on_unit_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmd, "ROWS", 5)  # several blocks of rows
    a, b = features(15, 6, 0, 0.5), features(12, 6, 1)
    x, y = (v.double().numpy() / np.linalg.norm(v.double().numpy(), axis=1, keepdims=True) for v in (a, b))
    k = lambda u, v: np.exp(-cdist(u, v, "sqeuclidean") / (2 * 10**2))  # noqa: E731
    expected = 1000 * (k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean())
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-8)
    assert cmmd(4 * a, b) == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(kernel_means(b).numpy(), k(y, y).mean(1), rtol=1e-12)
    assert cmmd(a, b, kernel_means(b)) == pytest.approx(expected, rel=1e-8)


def test_inception_score_agrees_with_scipy_and_torchmetrics() -> None:
    logits = 2 * features(90, 7, 3)
    p = scipy.special.softmax(logits.double().numpy(), axis=1)
    expected = np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))
    found = inception.inception_score(logits)
    assert found == pytest.approx(expected, rel=1e-10)
    metric = InceptionScore(feature=fidelity.Precomputed(7), splits=1)
    metric.update(logits.double())
    assert found == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_inception_score_of_many_samples_is_the_mean_over_splits() -> None:
    assert [inception.splits(n) for n in (2, 999, 1000, 50_000)] == [1, 1, 2, 10]
    logits = features(1000, 4, 5)
    halves = [inception.inception_score(part) for part in (logits[:500], logits[500:])]
    assert inception.inception_score(logits) == pytest.approx(np.mean(halves), rel=1e-12)
    with pytest.raises(InputError, match="2 or more classes"):
        inception.inception_score(logits[:, :1])


def test_inception_score_of_certain_and_of_clueless_classifiers() -> None:
    certain = 1e4 * torch.eye(5).repeat(4, 1)
    assert inception.inception_score(certain) == pytest.approx(5, rel=1e-9)
    assert inception.inception_score(torch.zeros(20, 5)) == pytest.approx(1, rel=1e-12)


def test_precision_and_recall_are_those_of_the_definition() -> None:
    a, b = features(40, 3, 0, 0.5), features(35, 3, 1)
    x, y = a.double().numpy(), b.double().numpy()
    reach = lambda points: np.sort(cdist(points, points), axis=1)[:, 3]  # noqa: E731
    precision = (cdist(x, y) <= reach(y)).any(1).mean()
    recall = (cdist(y, x) <= reach(x)).any(1).mean()
    assert precision_recall(a, b) == pytest.approx((precision, recall), abs=1e-12)
    assert 0 < precision < 1
    with pytest.raises(InputError, match="more than 3"):
        precision_recall(a[:3], b)


def test_precision_and_recall_of_torch_fidelitys_test_vectors() -> None:
    """The collapsed mode of torch-fidelity's tests/torch_pure/misc/test_prc_convention.py and its bounds."""
    generator = torch.Generator().manual_seed(42)
    generated = torch.randn(200, 16, generator=generator) * 0.1
    real = torch.randn(200, 16, generator=generator) * 3.0
    precision, recall = precision_recall(generated, real)
    assert precision > 0.8
    assert recall < 0.3


def test_figures_agree_with_torch_fidelity_on_the_same_features() -> None:
    """Its functions behind the weights, where the extra ``inception`` is installed."""
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason="pip install 'ditpress[inception]'")
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    a, b = features(300, 16, 0, 0.2).double(), features(300, 16, 1).double()
    statistics = [fid.fid_features_to_statistics(x) for x in (a, b)]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet(moments(a), moments(b)) == pytest.approx(theirs, rel=1e-6)
    assert fidelity.fid(a, b) == pytest.approx(theirs, rel=1e-6)
    whole = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=300, verbose=False)
    expected = whole["kernel_inception_distance_mean"]
    assert mmd.mmd(a, b, mmd.polynomial, unbiased=True) == pytest.approx(expected, rel=1e-6)
    score = isc_features_to_metric(a, splits=1)["inception_score_mean"]
    assert inception.inception_score(a) == pytest.approx(score, rel=1e-9)
    assert precision_recall(a, b) == pytest.approx(calculate_precision_recall_full(a, b), abs=1e-6)


def test_standard_error_of_a_mean_is_scipys() -> None:
    values = features(80, 1, 4)[:, 0]
    theirs = scipy.stats.bootstrap((values.numpy(),), np.mean, n_resamples=4000, rng=0).standard_error
    assert bootstrap.mean_error(values) == pytest.approx(theirs, rel=0.15)
    x, once = features(3, 2, 0), torch.ones(1, 3, dtype=torch.float64)  # all three alike in one of nine draws
    error = bootstrap.standard_error(
        lambda counts: mmd.resampled(x, x, mmd.polynomial, counts, once, unbiased=True), 3
    )
    assert np.isfinite(error)
    assert error > 0
    assert bootstrap.mean_error(torch.ones(9)) == pytest.approx(0, abs=1e-12)


def test_resamples_draw_n_from_n() -> None:
    counts = bootstrap.resamples(50, 400)
    assert counts.shape == (400, 50)
    assert torch.equal(counts.sum(1), torch.full((400,), 50.0, dtype=torch.float64))
    assert float((counts > 0).double().mean()) == pytest.approx(1 - np.exp(-1), abs=0.02)


@pytest.mark.parametrize("name", ["fid", "kid", "cmmd", "recall"])
def test_standard_error_is_the_spread_over_fresh_samples(name: str) -> None:
    """What the bootstrap says from one set of samples, against sixty sets drawn anew."""
    reference = features(400, 4, 1)
    once = mmd.unit(reference)
    kernel = mmd.gaussian(3.0)

    def value(x: torch.Tensor) -> float:
        if name == "fid":
            return frechet(moments(x), moments(reference))
        if name == "recall":
            return precision_recall(x, reference)[1]
        unbiased = name == "kid"
        return mmd.mmd(x, reference, mmd.polynomial if unbiased else kernel, unbiased=unbiased)

    def error(x: torch.Tensor) -> float:
        statistics = {
            "fid": bootstrap.each(lambda counts: frechet(moments(reference), moments(x, counts))),
            "kid": lambda counts: mmd.resampled(x, reference, mmd.polynomial, counts, once, unbiased=True),
            "cmmd": lambda counts: mmd.resampled(x, reference, kernel, counts, once, unbiased=False),
            "recall": lambda counts: covered(reference, x, radii(x), counts),
        }
        return bootstrap.standard_error(statistics[name], len(x), replicates=60)

    draws = [features(120, 4, seed, 0.4) for seed in range(100, 160)]
    spread = np.std([value(x) for x in draws], ddof=1)
    estimates = [error(x) for x in draws[:12]]
    assert 0.6 < np.mean(estimates) / spread < 1.6


def test_inside_counts_the_border() -> None:
    points = torch.tensor([[0.0], [1.0], [2.5]])
    assert inside(points, torch.tensor([[0.0]]), torch.tensor([1.0])).tolist() == [True, True, False]
