"""Inception-v3 of torch-fidelity with random weights, and the reference batches of ADM's evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ditpress.errors import InputError
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.inception import InceptionExtractor
from ditpress.validate.metrics.frechet import frechet, moments
from ditpress.validate.reference import load_reference
from ditpress.validate.table import Networks, describe
from ditpress.validate.validation import read_reference, validate


class TinyInception(InceptionExtractor):
    """Stands where the network stands: 3 pooled, 5 spatial features and logits, straight from the pixels."""

    num_features = 3

    def __init__(self) -> None:
        self.name, self.sha256, self.settings = "tiny", "00" * 32, {}

    def describe(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = images.flatten(1)
        return {"features": flat[:, :3], "spatial": flat[:, 3:8], "logits": 9 * flat[:, 8:12]}


def adm_batch(path: Path, *names: str, dimension: int = 3, count: int = 9) -> Path:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(50, dimension))
    arrays = {
        "arr_0": rng.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8),
        "mu": samples.mean(0),
        "sigma": np.cov(samples, rowvar=False),
        "mu_s": np.zeros(5),
        "sigma_s": np.eye(5),
    }
    np.savez(path, **{name: arrays[name] for name in names})
    return path


def test_moments_of_an_adm_batch_take_the_place_of_those_of_its_images(
    extractor: FeatureExtractor, tmp_path: Path
) -> None:
    path = adm_batch(tmp_path / "batch.npz", "arr_0", "mu", "sigma", "mu_s", "sigma_s")
    reference = load_reference(path)
    original = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    networks = Networks(extractor, TinyInception())
    result = validate(
        original,
        original.flip(3),
        extractor=extractor,
        inception=networks.inception,
        steps=1,
        guidance=None,
        reference=reference,
    )
    own = networks.inception.describe(original)
    with np.load(path) as arrays:
        mean, covariance = (torch.from_numpy(arrays[name]) for name in ("mu", "sigma"))
    given = moments(own["features"])
    assert reference.moments is not None
    assert torch.equal(reference.moments.mean, mean)
    assert torch.equal(reference.moments.covariance, covariance)
    assert result.original.fid == pytest.approx(frechet(reference.moments, given))
    assert reference.spatial_moments is not None
    assert result.original.sfid == pytest.approx(frechet(reference.spatial_moments, moments(own["spatial"])))
    assert result.original.recall is not None  # from its images
    assert result.inception is not None
    assert result.inception.name == "tiny"
    assert result.extractor.name == extractor.name
    assert result.original.inception_score is not None


def test_moments_alone_give_fid_and_nothing_that_needs_images(
    extractor: FeatureExtractor, tmp_path: Path
) -> None:
    reference = load_reference(adm_batch(tmp_path / "stats.npz", "mu", "sigma"))
    original = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    inception = TinyInception()
    scores = validate(
        original,
        original,
        extractor=extractor,
        inception=inception,
        steps=1,
        guidance=None,
        reference=reference,
    )
    assert scores.original.fid is not None
    assert (scores.original.sfid, scores.original.kid, scores.original.precision) == (None, None, None)
    with pytest.raises(InputError, match=r"moments of Inception-v3 and no images; .* --inception"):
        read_reference(reference, Networks(extractor), (1, 28, 28))


def test_images_of_an_adm_batch_serve_any_extractor(extractor: FeatureExtractor, tmp_path: Path) -> None:
    reference = load_reference(adm_batch(tmp_path / "batch.npz", "arr_0", "mu", "sigma"))
    real = read_reference(reference, Networks(extractor), (3, 28, 28))
    assert real.moments is None
    pixels = torch.cat(list(reference.batches((3, 28, 28))))
    torch.testing.assert_close(real.table["features"], describe(pixels, Networks(extractor))["features"])


def test_broken_batches_are_refused(tmp_path: Path) -> None:
    adm_batch(tmp_path / "half.npz", "mu")
    with pytest.raises(InputError, match="no array 'images'"):
        load_reference(tmp_path / "half.npz")
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(InputError, match=r"expected \[D\] and \[D, D\]"):
        load_reference(tmp_path / "shape.npz")
    np.savez(tmp_path / "none.npz", arr_0=np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="expected uint8"):
        load_reference(tmp_path / "none.npz")


def test_missing_weights_and_missing_extra_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file"):
        InceptionExtractor(tmp_path / "none.pth")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(InputError, match=r"pip install 'ditpress\[inception\]'"):
        InceptionExtractor(tmp_path / "weights.pth")


def test_the_real_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of all features, and the pooled ones against torch-fidelity's own call."""
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="pip install 'ditpress[inception]'"
    )
    network = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_args, **_kwargs: {})
        patch.setattr(network, "load_state_dict", lambda *_args, **_kwargs: None)
        torch.manual_seed(0)
        bare = network("inception-v3", ["2048"])
    torch.save(bare.state_dict(), tmp_path / "weights.pth")
    images = torch.rand(2, 1, 28, 28)
    found = InceptionExtractor(tmp_path / "weights.pth").describe(images)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "features": (2, 2048),
        "logits": (2, 1008),
        "spatial": (2, 7 * 17 * 17),
    }
    (expected,) = bare((images.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8))
    torch.testing.assert_close(found["features"], expected)
    (tmp_path / "broken.pth").write_bytes((tmp_path / "weights.pth").read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        InceptionExtractor(tmp_path / "broken.pth")
