"""From two sets of same-seed samples to the fidelity part of the report."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ditpress.errors import InputError
from ditpress.validate import fidelity
from ditpress.validate.bootstrap import CONFIDENCE
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.inception import InceptionExtractor
from ditpress.validate.lpips import Lpips
from ditpress.validate.reference import Reference
from ditpress.validate.reference_rows import reference_rows
from ditpress.validate.report import (
    CompressedScores,
    ExtractorId,
    Fidelity,
    Interval,
    PairedScores,
    ReferenceId,
    Scores,
)
from ditpress.validate.scores import RealImages, Score, pair_scores, scores_to_original, set_scores
from ditpress.validate.table import SIDES, Networks, Table, side, tabulate


def validate(
    original: Tensor,
    compressed: Tensor,
    *,
    extractor: FeatureExtractor,
    inception: InceptionExtractor | None = None,
    lpips: Lpips | None = None,
    steps: int | None,
    guidance: float | None,
    first_seed: int | None = None,
    captions: Sequence[str] | None = None,
    reference: Reference | None = None,
    output_sqnr_db: float | None = None,
    output_sqnr_error: float | None = None,
) -> Fidelity:
    """Measure the compressed model's samples against the original's, the captions and real images.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1]; image i of both from the same seed. n ≥ 2.
        extractor: the network of all feature figures, but for those of ``inception``.
        inception: the network of FID and its kin, where it is given; ``lpips``: that of LPIPS.
        steps, guidance, first_seed: how the samples were drawn, for the record.
        captions: one per image; None: no CLIP score.
        reference: real images; None: only the figures without them.
        output_sqnr_db, output_sqnr_error: from :func:`ditpress.validate.paired.output_sqnr`, where measured.

    Raises:
        InputError: shapes or numbers of images and captions do not fit together.
        StageError: the samples hold NaN or infinities: the model that drew them is broken.
    """
    if len(original) < 2:
        raise InputError(
            f"samples {tuple(original.shape)}: expected n of at least 2, a distribution; raise --samples"
        )
    networks = Networks(extractor, inception, lpips)
    shape = (original.shape[1], original.shape[2], original.shape[3])
    return measure(
        tabulate(original, compressed, networks, captions),
        networks=networks,
        steps=steps,
        guidance=guidance,
        first_seed=first_seed,
        captions=captions,
        reference=reference,
        real=None if reference is None else read_reference(reference, networks, shape),
        sqnr=None if output_sqnr_db is None else Score(output_sqnr_db, output_sqnr_error),
    )


def measure(
    table: Table,
    *,
    networks: Networks,
    steps: int | None,
    guidance: float | None,
    first_seed: int | None,
    captions: Sequence[str] | None,
    reference: Reference | None,
    real: RealImages | None,
    sqnr: Score | None,
) -> Fidelity:
    """The figures of a table of same-seed pairs; arguments as of :func:`validate`.

    ``real``: the rows of ``reference``, see :func:`read_reference`; ``sqnr``: of the outputs of one step.
    """
    sides = {name: side(table, name) for name in SIDES}
    count = len(table["ssim"])
    scores = {name: set_scores(rows, real, networks, captions) for name, rows in sides.items()}
    scores["compressed"] |= scores_to_original(sides["original"], sides["compressed"])
    scores["paired"] = pair_scores(table)
    if sqnr is not None:
        scores["paired"]["output_sqnr_db"] = sqnr
    figures = {
        group: dict.fromkeys(model.model_fields) | {name: s.value for name, s in scores[group].items()}
        for group, model in (("original", Scores), ("compressed", CompressedScores), ("paired", PairedScores))
    }
    features = networks.main.num_features
    sets = {"samples": count} | ({} if reference is None else {"reference images": reference.count})
    if real is not None and real.moments is not None:
        del sets["reference images"]
    warnings = [fidelity.rank_warning(what, n, features) for what, n in sets.items()]
    images = 0 if reference is None else reference.count
    return Fidelity(
        samples=count,
        first_seed=first_seed,
        steps=steps,
        guidance=guidance,
        kid_subset_size=fidelity.kid_subset_size(count, images or count),
        extractor=identity(networks.clip),
        inception=None if networks.inception is None else identity(networks.inception),
        lpips_network=None if networks.lpips is None else identity(networks.lpips),
        reference=None
        if reference is None
        else ReferenceId(name=reference.name, sha256=reference.sha256, count=reference.count),
        original=Scores(**figures["original"]),
        compressed=CompressedScores(**figures["compressed"]),
        paired=PairedScores(**figures["paired"]),
        warnings=[warning for warning in warnings if warning is not None],
        intervals={
            f"{group}.{name}": interval(score.value, score.error)
            for group, found in scores.items()
            for name, score in found.items()
            if score.error is not None
        },
    )


def read_reference(reference: Reference, networks: Networks, shape: tuple[int, int, int]) -> RealImages:
    """The rows of the real images, and the moments that came with them where they fit the network.

    Args:
        shape: (C, H, W) of the samples.

    Raises:
        InputError: there are moments of Inception-v3 and no images, and another network to compare with.
    """
    table = reference_rows(reference, networks, shape) if reference.count else {}
    if networks.inception is not None:
        return RealImages(table, reference.moments, reference.spatial_moments)
    if not table:
        raise InputError(
            f"reference {reference.name}: holds moments of Inception-v3 and no images; give its weights with "
            "--inception, or a reference with images"
        )
    return RealImages(table)


def identity(network: FeatureExtractor | InceptionExtractor | Lpips) -> ExtractorId:
    """Name and hash of a network, for the report."""
    return ExtractorId(name=network.name, sha256=network.sha256, num_features=network.num_features)


def interval(value: float, error: float) -> Interval:
    """95 % confidence interval around a figure."""
    return Interval(low=value - CONFIDENCE * error, high=value + CONFIDENCE * error, standard_error=error)
