"""Distances between sets of images, and of images to their captions, on features computed once.

The metrics are those of torchmetrics. The features come in ready-made, because every set takes part in
several figures (to the real images, to the original's samples) and needs only one pass through the network.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ditpress.errors import InputError

KID_SUBSETS = 50
KID_SUBSET_SIZE = 500


def _alone() -> bool:
    """Tells torchmetrics that no other process holds rows of a metric: it would wait for them to join in."""
    return False


class Precomputed(nn.Module):
    """The "network" handed to torchmetrics: its input already is the features [n, D].

    ``num_features`` keeps torchmetrics from probing the module with a random uint8 image.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of two feature sets [n, D] and [m, D] (Heusel et al. 2017, eq. 6), in float64.

    Raises:
        InputError: fewer than two samples, or feature lengths differ.
    """
    _check(features, reference, "FID")
    metric = FrechetInceptionDistance(feature=Precomputed(features.shape[1]), distributed_available_fn=_alone)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    # Equal sets come out at about -1e-12: rounding of the eigenvalues, the distance is never negative.
    return max(0.0, float(metric.compute()))


def kid(features: Tensor, reference: Tensor, *, seed: int = 0) -> float:
    """Kernel distance of two feature sets: unbiased squared MMD with the kernel (x·y / D + 1)^3.

    The mean over :data:`KID_SUBSETS` random subsets of :func:`kid_subset_size` samples
    (Bińkowski et al. 2018, §4), in float64; may be slightly negative where the sets agree.
    ``seed`` draws the subsets; torch's global generator is left as it was.

    Raises:
        InputError: fewer than two samples, or feature lengths differ.
    """
    _check(features, reference, "KID")
    size = kid_subset_size(len(features), len(reference))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer.*")
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            Precomputed(features.shape[1]),
            subsets=KID_SUBSETS,
            subset_size=size,
            distributed_available_fn=_alone,
        )
        metric.update(reference.double(), real=True)
        metric.update(features.double(), real=False)
        mean, _ = metric.compute()
    return float(mean)


def kid_subset_size(count: int, reference_count: int) -> int:
    """Samples per KID subset: :data:`KID_SUBSET_SIZE`, or the smaller set where it has fewer."""
    return min(KID_SUBSET_SIZE, count, reference_count)


def clip_score(image_features: Tensor, text_features: Tensor) -> float:
    """Mean over pairs of 100 · cos(image, caption), at least 0 (Hessel et al. 2021; torchmetrics' CLIPScore).

    Args:
        image_features, text_features: [n, D], row i of both belong together; any length.
    """
    if image_features.shape != text_features.shape:
        raise InputError(
            f"CLIP score: image features {tuple(image_features.shape)}, text {tuple(text_features.shape)}; "
            "expected one caption per image"
        )
    cosine = F.cosine_similarity(image_features.double(), text_features.double(), dim=1)
    return max(0.0, float(100 * cosine.mean()))


def rank_warning(what: str, count: int, num_features: int) -> str | None:
    """A sentence for the report where ``count`` samples cannot give a covariance of full rank, else None."""
    if count > num_features:
        return None
    return (
        f"FID: {count} {what} cannot give a full-rank covariance of {num_features} features; "
        f"draw at least {num_features + 1}, until then read the figure as a rough indication"
    )


def _check(features: Tensor, reference: Tensor, metric: str) -> None:
    if min(len(features), len(reference)) < 2:
        raise InputError(
            f"{metric}: {len(features)} and {len(reference)} samples; expected at least 2 of each"
        )
    if features.shape[1] != reference.shape[1]:
        raise InputError(
            f"{metric}: features of length {features.shape[1]} and {reference.shape[1]}; "
            "expected both sets from the same extractor"
        )
