"""Precision and recall: how many samples look real, and how much of what is real the samples cover."""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.errors import InputError

NEIGHBOURS = 3
ROWS = 1024


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Parts of the samples in the manifold of the reference, and of the reference in that of the samples.

    The manifold of a set: balls around its points that reach their third neighbour (Kynkäänniemi et al.,
    "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019, eq. 1-3).

    Args:
        features, reference: [n, D] and [m, D], of about the same size: more points make a larger manifold.
    """
    return (
        float(inside(features, reference, radii(reference)).double().mean()),
        float(inside(reference, features, radii(features)).double().mean()),
    )


def radii(points: Tensor) -> Tensor:
    """Distance [n] of every point to its third neighbour.

    Raises:
        InputError: too few points.
    """
    if len(points) <= NEIGHBOURS:
        raise InputError(
            f"precision and recall: {len(points)} images; expected more than {NEIGHBOURS}, the neighbours "
            "that a manifold is made of"
        )
    x = points.double()
    # The nearest of all is the point itself.
    return torch.cat([_distances(rows, x).kthvalue(NEIGHBOURS + 1, dim=1).values for rows in x.split(ROWS)])


def inside(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Which points lie in a ball around a centre, bool [n]."""
    return torch.cat([membership(rows, centres, radius).any(1) for rows in points.split(ROWS)])


def membership(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Which points lie in which ball, bool [n, m]."""
    return _distances(points.double(), centres.double()) <= radius[None]


def covered(points: Tensor, centres: Tensor, radius: Tensor, counts: Tensor) -> Tensor:
    """The part of the points inside, for B resamples of the centres [B]; ``counts`` [B, m]."""
    drawn = (counts > 0).float().T
    found = torch.zeros(len(counts), dtype=torch.float64)
    for rows in points.split(ROWS):
        found += ((membership(rows, centres, radius).float() @ drawn) > 0).double().sum(0)
    return found / len(points)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
