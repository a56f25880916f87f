"""Fréchet distance of two Gaussians, from features or from stored moments; FID and sFID are made of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditpress.errors import InputError


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D], float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor, counts: Tensor | None = None) -> Moments:
    """Mean and unbiased covariance of features [n, D]; ``counts`` [n]: how often a row is in the sample."""
    x = features.double()
    weights = torch.ones(len(x), dtype=torch.float64) if counts is None else counts.double()
    total = weights.sum()
    mean = (weights @ x) / total
    centred = x - mean
    return Moments(mean, (centred * weights[:, None]).T @ centred / (total - 1))


def frechet(a: Moments, b: Moments, root: Tensor | None = None) -> float:
    """‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) (Heusel et al. 2017, eq. 6), in float64.

    The trace of the root comes from the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½, which has those of Σ₁Σ₂
    and exists whatever the rank.

    Args:
        a, b: of the same length D.
        root: :func:`square_root` of ``a.covariance``, where it is known from a call before.

    Raises:
        InputError: the lengths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"Fréchet distance: moments of {len(a.mean)} and {len(b.mean)} features; expected both from the "
            "same extractor"
        )
    half = square_root(a.covariance) if root is None else root
    eigenvalues = torch.linalg.eigvalsh(half @ b.covariance @ half).clamp_min(0)
    traces = a.covariance.trace() + b.covariance.trace() - 2 * eigenvalues.sqrt().sum()
    # Equal sets come out at about -1e-12: rounding of the eigenvalues, the distance is never negative.
    return max(0.0, float((a.mean - b.mean).square().sum() + traces))


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
