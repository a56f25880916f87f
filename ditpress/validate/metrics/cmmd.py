"""CMMD: a distance of CLIP embeddings without the normality that FID assumes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ditpress.validate.metrics.mmd import gaussian, mmd, row_means

BANDWIDTH = 10.0
SCALE = 1000.0
KERNEL = gaussian(BANDWIDTH)


def cmmd(features: Tensor, reference: Tensor, kernel_means: Tensor | None = None) -> float:
    """1000 · squared MMD, Gaussian kernel of bandwidth 10, on embeddings of length one.

    Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation", CVPR 2024.
    As in the authors' implementation the pairs of a sample with itself count, so it is never negative.

    Args:
        features, reference: [n, D] and [m, D], embeddings of CLIP; scaled to unit length here.
        kernel_means: :func:`kernel_means` of ``reference``, [m], where they are known.
    """
    within = None if kernel_means is None else kernel_means.mean()
    return SCALE * mmd(embedded(features), embedded(reference), KERNEL, unbiased=False, within_y=within)


def kernel_means(reference: Tensor) -> Tensor:
    """Mean of the kernel of each embedding with all of ``reference`` [m, D], float64 [m]."""
    return row_means(embedded(reference), KERNEL)


def embedded(features: Tensor) -> Tensor:
    """Rows of unit length, float64."""
    return F.normalize(features.double(), dim=1)
