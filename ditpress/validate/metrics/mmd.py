"""Maximum mean discrepancy with any kernel, for any number of resamples at once, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
ROWS = 1024  # of a kernel matrix in memory at once


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x·y / D + 1)³, the kernel of KID (Bińkowski et al. 2018, §4), [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(bandwidth: float) -> Kernel:
    """exp(-‖x - y‖² / (2 bandwidth²)), [n, m]."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * (x @ y.T)
        return torch.exp(squares.clamp_min(0) / (-2 * bandwidth**2))

    return kernel


def mmd(
    x: Tensor, y: Tensor, kernel: Kernel, *, unbiased: bool, within_y: float | Tensor | None = None
) -> float:
    """Squared MMD of x [n, D] and y [m, D] in float64 (Gretton et al. 2012, eq. 3 and 5).

    Args:
        unbiased: without the pairs of a sample with itself, may be negative; else with them.
        within_y: the part that is y's alone, by :func:`within`, where it is known.
    """
    value = resampled(x, y, kernel, unit(x), unit(y), unbiased=unbiased)[0]
    return float(value + (within(y, kernel, unit(y), unbiased)[0] if within_y is None else within_y))


def resampled(x: Tensor, y: Tensor, kernel: Kernel, cx: Tensor, cy: Tensor, *, unbiased: bool) -> Tensor:
    """The part of squared MMD that depends on x, for B resamples: E k(x, x') - 2 E k(x, y), [B].

    Args:
        cx, cy: [B, n] and [B or 1, m], how often each row is in the resample.
    """
    x, y = x.double(), y.double()
    cross = torch.zeros(len(cx), dtype=torch.float64)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        cross += ((kernel(x[rows], y) @ cy.T).T * cx[:, rows]).sum(1)
    return within(x, kernel, cx, unbiased) - 2 * cross / (cx.sum(1) * cy.sum(1))


def within(x: Tensor, kernel: Kernel, counts: Tensor, unbiased: bool) -> Tensor:
    """Mean of the kernel over pairs of rows, for each resample, [B].

    ``unbiased``: over pairs of different rows. A row drawn twice makes no pair with itself, which would pull
    every resample towards k(x, x).
    """
    x = x.double()
    total = torch.zeros(len(counts), dtype=torch.float64)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        block = kernel(x[rows], x)
        if unbiased:
            index = torch.arange(len(block))
            block[index, start + index] = 0
        total += ((block @ counts.T).T * counts[:, rows]).sum(1)
    pairs = counts.sum(1).square()
    return total / (pairs - counts.square().sum(1) if unbiased else pairs)


def row_means(x: Tensor, kernel: Kernel) -> Tensor:
    """Mean of the kernel of each row with all rows, itself too, float64 [n]; together biased ``within``."""
    x = x.double()
    return torch.cat([kernel(rows, x).mean(1) for rows in x.split(ROWS)])


def unit(x: Tensor) -> Tensor:
    """Every row once, [1, n]."""
    return torch.ones(1, len(x), dtype=torch.float64)
