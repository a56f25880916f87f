"""How much a figure would differ with other samples: standard errors by the bootstrap (Efron 1979).

The reference images are taken as given: both sides of a comparison are measured against the same ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

REPLICATES = 100
LARGE_REPLICATES = 25  # of FID with long features, where each takes the eigenvalues of a large matrix
LARGE = 512
CONFIDENCE = 1.96  # standard errors on both sides of a 95 % interval


def resamples(count: int, replicates: int = REPLICATES, seed: int = 0) -> Tensor:
    """``replicates`` draws of ``count`` from ``count`` with replacement, float64 [replicates, count].

    Entry [b, i] says how often sample i is in resample b.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (replicates, count), generator=generator)
    counts = torch.zeros(replicates, count, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def standard_error(
    statistic: Callable[[Tensor], Tensor], count: int, replicates: int = REPLICATES, seed: int = 0
) -> float:
    """Standard deviation of ``statistic`` over resamples.

    An interval is the figure ± 1.96 of it, not the percentiles of the resamples: a resample holds about 63 %
    of the samples, and the bias of FID falls with their number, so that the percentiles of FID lie beside it.

    Args:
        statistic: ``statistic(counts)`` gives float64 [B] for ``counts`` [B, count] of :func:`resamples`.
    """
    values = statistic(resamples(count, replicates, seed))
    # Of very few samples a resample may be one of them many times, of which not every statistic has a value.
    values = values[values.isfinite()]
    return float(values.std()) if len(values) > 1 else 0.0


def each(statistic: Callable[[Tensor], float]) -> Callable[[Tensor], Tensor]:
    """A statistic of one resample [count] as one of many [B, count]."""
    return lambda counts: torch.tensor([statistic(row) for row in counts], dtype=torch.float64)


def mean_error(values: Tensor) -> float:
    """Standard error of the mean of ``values`` [n]."""
    return standard_error(lambda counts: counts @ values.double() / counts.sum(1), len(values))
