"""Medians and ratios of rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if not values:
        raise ValueError("no rounds: expected at least one")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The spread over the rounds of the ratio in each round: entry i of both ran in the same one."""
    if len(numerator) != len(denominator):
        raise ValueError(f"{len(numerator)} rounds against {len(denominator)}: expected the same rounds")
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def runs_for(budget: float, once: float, least: int = 2, most: int = 50) -> int:
    """How many runs of ``once`` seconds make a turn of about ``budget`` seconds."""
    return max(least, min(most, round(budget / once))) if once > 0 else most
