"""Inception-v3 of torch-fidelity with random weights, and the reference batches of ADM's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ditpress.errors import InputError
from ditpress.load import hub
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.inception import InceptionExtractor
from ditpress.validate.lpips import Lpips
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


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """torch-fidelity's network with random weights and statistics, and its file."""
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="pip install 'ditpress[inception]'"
    )
    network = module.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(module, "load_state_dict_from_url", lambda *_args, **_kwargs: {})
        patch.setattr(network, "load_state_dict", lambda *_args, **_kwargs: None)
        torch.manual_seed(0)
        bare = network("inception-v3", ["2048"])
    for norm in (part for part in bare.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.bias):
            values.copy_(0.1 * torch.randn_like(values))
        for values in (norm.running_var, norm.weight):
            values.copy_(0.5 + torch.rand_like(values))
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(bare.state_dict(), path)
    return bare, path


def test_the_real_architecture(network: tuple[Any, Path], tmp_path: Path) -> None:
    """Shapes of all features, and the pooled ones against torch-fidelity's own call."""
    bare, path = network
    images = torch.rand(2, 1, 28, 28)
    found = InceptionExtractor(path).describe(images)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "features": (2, 2048),
        "logits": (2, 1008),
        "spatial": (2, 7 * 17 * 17),
    }
    (expected,) = bare((images.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8))
    torch.testing.assert_close(found["features"], expected)
    (tmp_path / "broken.pth").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        InceptionExtractor(tmp_path / "broken.pth")


def test_spatial_features_are_those_of_adms_evaluation(network: tuple[Any, Path]) -> None:
    """``mixed_6/conv:0`` of the TensorFlow graph, ``[..., :7]``, flattened from channels last.

    In the graph an operation ``X/conv`` is the ReLU after ``X/conv/Conv2D`` and ``X/conv/batchnorm`` (epsilon
    0.001), and ``mixed`` … ``mixed_6`` are torch-fidelity's Mixed_5b … Mixed_6d. Written out here from the
    weights: TensorFlow's bilinear resize, (x - 128) / 128, the blocks before, then the branch in float64.
    """
    bare, path = network
    images = torch.rand(2, 3, 40, 33, generator=torch.Generator().manual_seed(2))
    x = resized_by_tensorflow((images * 255).round().double().numpy(), 299)
    x = torch.from_numpy((x - 128) / 128).float()
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    mixed = ("MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c")
    for name in (*stem, *mixed):
        x = getattr(bare, name)(x)
    assert x.shape == (2, 768, 17, 17)
    weights = {name: value.double().numpy() for name, value in bare.state_dict().items()}
    branch = "Mixed_6d.branch1x1."
    y = np.einsum("oc,nchw->nhwo", weights[f"{branch}conv.weight"][:, :, 0, 0], x.double().numpy())
    y = (y - weights[f"{branch}bn.running_mean"]) / np.sqrt(weights[f"{branch}bn.running_var"] + 0.001)
    y = np.maximum(y * weights[f"{branch}bn.weight"] + weights[f"{branch}bn.bias"], 0)
    expected = y[..., :7].reshape(2, -1)
    found = InceptionExtractor(path).describe(images)["spatial"].double().numpy()
    assert found.shape == (2, 2023)
    assert 0.1 < (expected > 0).mean() < 0.9  # the ReLU makes a difference
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


def resized_by_tensorflow(images: np.ndarray, side: int) -> np.ndarray:
    """ResizeBilinear of TensorFlow 1 without aligned corners: output i reads from input i · size / side."""
    for axis in (2, 3):
        size = images.shape[axis]
        position = np.arange(side) * size / side
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, size - 1)
        part = (position - low).reshape((-1, 1) if axis == 2 else (1, -1))
        images = np.take(images, low, axis) * (1 - part) + np.take(images, high, axis) * part
    return images


def test_weights_come_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(repo: str, file: str, revision: str | None) -> str:
        asked.append((repo, file, revision))
        path = tmp_path / Path(file).name
        path.write_bytes(b"no weights")
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert hub.local_file("hf:owner/name/sub/weights.pth") == tmp_path / "weights.pth"
    assert hub.local_file("hf:owner/name@v1/weights.pth") == tmp_path / "weights.pth"
    assert asked == [("owner/name", "sub/weights.pth", None), ("owner/name", "weights.pth", "v1")]
    assert hub.local_file("a/b.pth") == Path("a/b.pth")
    assert hub.local_file(tmp_path) == tmp_path
    with pytest.raises(InputError, match=r"expected hf:OWNER/NAME/FILE"):
        hub.local_file("hf:weights.pth")
    # Both networks look there, and say what is wrong with what came.
    with pytest.raises(InputError, match=r"LPIPS weights .*cannot be read"):
        Lpips("hf:owner/name/alexnet.pth")
    with pytest.raises(
        InputError, match=r"weights.pth: cannot be loaded|pip install 'ditpress\[inception\]'"
    ):
        InceptionExtractor("hf:owner/name/weights.pth")
    assert [name for name, _, _ in asked] == ["owner/name"] * 4


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("Check your connection"), "no such file, and the hub cannot be reached"),
        (EntryNotFoundError("404"), "the repository is there, but not this file"),
        (OSError("reset\nby peer"), "the download failed (reset by peer)"),
    ],
)
def test_what_the_hub_does_not_give_is_said(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(InputError) as caught:
        InceptionExtractor("hf:owner/name/weights.pth")
    assert str(caught.value).startswith("hf:owner/name/weights.pth: ")
    assert message in str(caught.value)
