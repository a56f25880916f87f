"""All figures of a table of samples, each with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ditpress.validate import fidelity, paired
from ditpress.validate.bootstrap import (
    LARGE,
    LARGE_REPLICATES,
    REPLICATES,
    each,
    mean_error,
    standard_error,
)
from ditpress.validate.metrics import cmmd as clip_mmd
from ditpress.validate.metrics import inception_score as inception
from ditpress.validate.metrics import mmd
from ditpress.validate.metrics.frechet import Moments, frechet, moments, square_root
from ditpress.validate.metrics.precision_recall import NEIGHBOURS, covered, inside, radii
from ditpress.validate.table import Networks, Table, clip_features

MAX_CLASSES = 1000  # captions that count as classes of a zero-shot classifier


@dataclass(frozen=True)
class Score:
    """A figure and its standard error over other samples; None where it cannot be estimated."""

    value: float
    error: float | None


Scores = dict[str, Score]


@dataclass(frozen=True)
class RealImages:
    """The reference as the metrics see it: rows of its images, and moments where it came with them.

    ``table`` may be empty where only moments are known; else it has ``kernel_means`` too.
    """

    table: Table
    moments: Moments | None = None
    spatial_moments: Moments | None = None


def pair_scores(table: Table) -> Scores:
    """``psnr``, ``ssim`` and ``lpips`` of same-seed pairs."""
    errors = table["squared_error"]

    def psnr(counts: Tensor) -> Tensor:
        means = (counts @ errors / counts.sum(1)).clamp_min(10 ** (-paired.MAX_DB / 10))
        return -10 * means.log10()

    scores = {"psnr": Score(paired.psnr_of(errors), standard_error(psnr, len(errors)))}
    for name in ("ssim", "lpips"):
        scores[name] = Score(float(table[name].mean()), mean_error(table[name]))
    return scores


def set_scores(
    rows: Table, real: RealImages | None, networks: Networks, captions: Sequence[str] | None
) -> Scores:
    """The figures of one set of samples: to the reference where there is one, and to its captions."""
    scores: Scores = {}
    if captions is not None:
        clip = rows["clip"]
        scores["clip"] = Score(max(0.0, float(clip.mean())), mean_error(clip))
    logits = _logits(rows, networks, captions)
    if logits is not None:
        error = standard_error(lambda counts: inception.resampled(logits, counts), len(logits))
        scores["inception_score"] = Score(inception.inception_score(logits), error)
    if real is None:
        return scores
    for name, key, given in (("fid", "features", real.moments), ("sfid", "spatial", real.spatial_moments)):
        if given is not None or key in real.table:
            scores[name] = _frechet_score(rows[key], given or moments(real.table[key]))
    if "features" in real.table:
        scores |= _sample_scores(rows, real.table)
    return scores


def scores_to_original(original: Table, compressed: Table) -> Scores:
    """FID and KID between the two models' samples of the same seeds, resampled in pairs."""
    x, y = compressed["features"], original["features"]
    fid_error = standard_error(
        each(lambda counts: frechet(moments(y, counts), moments(x, counts))), len(x), _replicates(x)
    )

    def kid(counts: Tensor) -> Tensor:
        own = mmd.resampled(x, y, mmd.polynomial, counts, counts, unbiased=True)
        return own + mmd.within(y.double(), mmd.polynomial, counts, True)

    return {
        "fid_to_original": Score(fidelity.fid(x, y), fid_error),
        "kid_to_original": Score(fidelity.kid(x, y), standard_error(kid, len(x))),
    }


def _frechet_score(features: Tensor, reference: Moments) -> Score:
    root = square_root(reference.covariance)
    error = standard_error(
        each(lambda counts: frechet(reference, moments(features, counts), root)),
        len(features),
        _replicates(features),
    )
    return Score(frechet(reference, moments(features), root), error)


def _sample_scores(rows: Table, real: Table) -> Scores:
    """The figures that need the single real images, not only their moments."""
    x, y = rows["features"], real["features"]
    everything = mmd.unit(y)
    kid = standard_error(
        lambda counts: mmd.resampled(x, y, mmd.polynomial, counts, everything, unbiased=True), len(x)
    )
    clip, clip_real = (clip_mmd.embedded(clip_features(table)) for table in (rows, real))
    cmmd = clip_mmd.SCALE * standard_error(
        lambda counts: mmd.resampled(clip, clip_real, clip_mmd.KERNEL, counts, everything, unbiased=False),
        len(x),
    )
    scores = {
        "kid": Score(fidelity.kid(x, y), kid),
        "cmmd": Score(clip_mmd.cmmd(clip, clip_real, real["kernel_means"]), cmmd),
    }
    near = _spread(y, len(x))  # more points make a larger manifold: as many of the one as of the other
    if min(len(x), len(near)) <= NEIGHBOURS:
        return scores
    found, reach = inside(x, near, radii(near)), radii(x)
    return scores | {
        "precision": Score(float(found.double().mean()), mean_error(found.double())),
        "recall": Score(
            float(inside(near, x, reach).double().mean()),
            standard_error(lambda counts: covered(near, x, reach, counts), len(x)),
        ),
    }


def _logits(rows: Table, networks: Networks, captions: Sequence[str] | None) -> Tensor | None:
    """Of Inception-v3, or of CLIP as zero-shot classifier of the different captions; None: no classes."""
    if "logits" in rows:
        return rows["logits"]
    classes = list(dict.fromkeys(captions or ()))
    if not 2 <= len(classes) <= MAX_CLASSES:
        return None
    return networks.clip.class_logits(rows["features"], networks.clip.text_features(classes))


def _spread(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` rows, evenly over all."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count) * len(rows) // count]


def _replicates(features: Tensor) -> int:
    return REPLICATES if features.shape[1] <= LARGE else LARGE_REPLICATES
