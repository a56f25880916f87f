"""From two sets of same-seed samples to the fidelity part of the report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ditpress.errors import InputError, StageError
from ditpress.validate import fidelity, paired
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.reference import Reference
from ditpress.validate.report import (
    CompressedScores,
    ExtractorId,
    Fidelity,
    PairedScores,
    ReferenceId,
    Scores,
)


def validate(
    original: Tensor,
    compressed: Tensor,
    *,
    extractor: FeatureExtractor,
    steps: int | None,
    guidance: float | None,
    first_seed: int | None = None,
    captions: Sequence[str] | None = None,
    reference: Reference | None = None,
    output_sqnr_db: float | None = None,
) -> Fidelity:
    """Measure the compressed model's samples against the original's, the captions and real images.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1]; image i of both from the same seed. n ≥ 2.
        extractor: the network of all feature figures.
        steps, guidance, first_seed: how the samples were drawn, for the record.
        captions: one per image; None: no CLIP score.
        reference: real images; None: FID and KID only to the original's samples.
        output_sqnr_db: from :func:`ditpress.validate.paired.output_sqnr`, where it was measured.

    Raises:
        InputError: shapes or numbers of images and captions do not fit together.
        StageError: the samples hold NaN or infinities: the model that drew them is broken.
    """
    _check(original, compressed, captions)
    count, shape = len(original), (original.shape[1], original.shape[2], original.shape[3])
    original_features = extractor.features(original, description="features of the original")
    compressed_features = extractor.features(compressed, description="features of the compressed")
    sets = {"samples": count}
    real: Tensor | None = None
    if reference is not None:
        sets["reference images"] = reference.count
        real = extractor.features(
            reference.batches(shape), description="features of the reference", total=reference.batch_count()
        )
    texts = extractor.text_features(captions) if captions is not None else None

    def score(features: Tensor) -> Scores:
        return Scores(
            fid=None if real is None else fidelity.fid(features, real),
            kid=None if real is None else fidelity.kid(features, real),
            clip=None if texts is None else fidelity.clip_score(features, texts),
        )

    warnings = [fidelity.rank_warning(what, n, extractor.num_features) for what, n in sets.items()]
    return Fidelity(
        samples=count,
        first_seed=first_seed,
        steps=steps,
        guidance=guidance,
        kid_subset_size=fidelity.kid_subset_size(count, count if reference is None else reference.count),
        extractor=ExtractorId(
            name=extractor.name, sha256=extractor.sha256, num_features=extractor.num_features
        ),
        reference=None
        if reference is None
        else ReferenceId(name=reference.name, sha256=reference.sha256, count=reference.count),
        original=score(original_features),
        compressed=CompressedScores(
            **score(compressed_features).model_dump(),
            fid_to_original=fidelity.fid(compressed_features, original_features),
            kid_to_original=fidelity.kid(compressed_features, original_features),
        ),
        paired=PairedScores(
            psnr=paired.psnr(original, compressed),
            ssim=paired.ssim(original, compressed),
            lpips=paired.feature_distance(extractor, original, compressed),
            output_sqnr_db=output_sqnr_db,
        ),
        warnings=[warning for warning in warnings if warning is not None],
    )


def _check(original: Tensor, compressed: Tensor, captions: Sequence[str] | None) -> None:
    if original.shape != compressed.shape or original.ndim != 4 or len(original) < 2:
        raise InputError(
            f"samples {tuple(original.shape)} and {tuple(compressed.shape)}: expected two equal shapes "
            "[n, C, H, W] with n of at least 2; raise --samples"
        )
    if captions is not None and len(captions) != len(original):
        raise InputError(f"{len(captions)} captions for {len(original)} samples; expected one per sample")
    for name, images in (("original", original), ("compressed", compressed)):
        if not torch.isfinite(images).all():
            raise StageError(
                f"samples of the {name} model hold NaN or infinities; its weights or kernels are broken"
            )
