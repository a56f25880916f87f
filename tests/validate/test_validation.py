from pathlib import Path

import numpy as np
import pytest
import torch

from ditpress.errors import InputError, StageError
from ditpress.validate import fidelity, paired
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.metrics.cmmd import cmmd
from ditpress.validate.metrics.frechet import frechet, moments
from ditpress.validate.metrics.inception_score import inception_score
from ditpress.validate.metrics.precision_recall import precision_recall
from ditpress.validate.reference import Reference, load_reference
from ditpress.validate.validation import validate


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(12, 1, 28, 28, generator=generator)
    return original, (original + 0.2 * torch.randn(original.shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    digits = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", images=digits)
    return load_reference(tmp_path / "digits.npz")


def test_every_figure_compares_the_right_two_things(
    extractor: FeatureExtractor, images: tuple[torch.Tensor, torch.Tensor], reference: Reference
) -> None:
    original, compressed = images
    captions = ["one", "a one"] * 6
    result = validate(
        original,
        compressed,
        extractor=extractor,
        steps=20,
        guidance=4.0,
        captions=captions,
        reference=reference,
        output_sqnr_db=12.5,
        output_sqnr_error=0.25,
    )
    a, b = extractor.features(original), extractor.features(compressed)
    real = extractor.features(torch.cat(list(reference.batches((1, 28, 28)))))
    texts = extractor.text_features(captions)
    assert result.original.fid == pytest.approx(fidelity.fid(a, real))
    assert result.compressed.fid == pytest.approx(fidelity.fid(b, real))
    assert result.compressed.fid_to_original == pytest.approx(fidelity.fid(b, a))
    assert result.original.kid == pytest.approx(fidelity.kid(a, real))
    assert result.compressed.kid == pytest.approx(fidelity.kid(b, real))
    assert result.compressed.kid_to_original == pytest.approx(fidelity.kid(b, a))
    assert result.original.clip == pytest.approx(fidelity.clip_score(a, texts))
    assert result.compressed.clip == pytest.approx(fidelity.clip_score(b, texts))
    assert len({result.original.fid, result.compressed.fid, result.compressed.fid_to_original}) == 3
    assert result.paired.psnr == pytest.approx(paired.psnr(original, compressed))
    assert result.paired.output_sqnr_db == 12.5
    assert result.compressed.cmmd == pytest.approx(cmmd(b, real))
    assert (result.compressed.precision, result.compressed.recall) == precision_recall(b, real)
    spatial = [
        moments(extractor.describe(x)[1]) for x in (torch.cat(list(reference.batches((1, 28, 28)))), original)
    ]
    assert result.original.sfid == pytest.approx(frechet(*spatial))
    classes = extractor.class_logits(b, extractor.text_features(["one", "a one"]))
    assert result.compressed.inception_score == pytest.approx(inception_score(classes))
    interval = result.intervals["paired.output_sqnr_db"]
    assert (interval.low, interval.high) == pytest.approx((12.5 - 1.96 * 0.25, 12.5 + 1.96 * 0.25))
    ssim = paired.structural_similarities(original, compressed)
    assert result.intervals["paired.ssim"].standard_error == pytest.approx(
        float(ssim.std()) / 12**0.5, rel=0.3
    )
    figures = {
        f"{side}.{n}" for side in ("original", "compressed") for n in type(result.original).model_fields
    }
    figures |= {"compressed.fid_to_original", "compressed.kid_to_original"}
    assert set(result.intervals) == figures | {f"paired.{name}" for name in type(result.paired).model_fields}
    assert (result.samples, result.steps, result.guidance, result.kid_subset_size) == (12, 20, 4.0, 6)
    assert result.extractor is not None
    assert result.extractor.sha256 == extractor.sha256
    assert result.reference is not None
    assert result.reference.count == 6
    assert len(result.warnings) == 1  # 12 samples are enough for 8 features, 6 real images are not
    assert "6 reference images" in result.warnings[0]


def test_without_reference_and_captions_only_the_original_is_the_measure(
    extractor: FeatureExtractor, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    result = validate(*images, extractor=extractor, steps=None, guidance=None)
    assert (result.original.fid, result.original.kid, result.original.clip) == (None, None, None)
    assert (result.compressed.fid, result.compressed.clip, result.reference) == (None, None, None)
    assert result.compressed.fid_to_original is not None
    assert result.compressed.fid_to_original > 0
    assert result.warnings == []


def test_broken_samples_are_refused(
    extractor: FeatureExtractor, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    original, compressed = images
    compressed[3, 0, 5, 5] = float("nan")
    with pytest.raises(StageError, match="compressed model hold NaN"):
        validate(original, compressed, extractor=extractor, steps=1, guidance=None)


def test_sets_that_do_not_fit_are_refused(
    extractor: FeatureExtractor, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    original, compressed = images
    with pytest.raises(InputError, match="n of at least 2"):
        validate(original[:1], compressed[:1], extractor=extractor, steps=1, guidance=None)
    with pytest.raises(InputError, match="3 captions for 12 samples"):
        validate(original, compressed, extractor=extractor, steps=1, guidance=None, captions=["one"] * 3)
