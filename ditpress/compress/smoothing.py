"""Smoothing factors: the range of activation outliers moves into the weights, without changing the function.

``x W = (x / s) (W s)``, one factor per input channel. Xiao et al., "SmoothQuant", ICML 2023, eq. 3 and 4. The
exponents are fixed there; DiTAS (Dong & Zhang, WACV 2025) and SVDQuant (Li et al., ICLR 2025) search them per
layer for the least error of its output. Pure mathematics, tensors in and tensors out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Exponents = tuple[float, float]
NONE: Exponents = (0.0, 0.0)  # all factors are one
MAX_OUTPUTS = 1024  # that a search looks at: its time is then that of the layer's inputs alone
SMALLEST_FACTOR = 1e-4  # a channel that is nearly silent in calibration must not blow up its producer (DiTAS)


def candidates(kind: Literal["smoothquant", "svdquant"]) -> tuple[Exponents, ...]:
    """The exponents (of the inputs, of the weights) to try, no smoothing first.

    smoothquant: (a, 1 - a) for a = 0, 0.05, ... 1, the 21 values of DiTAS.
    svdquant: (a, 0) and (a, 1 - a) for a = 0.05, 0.1, ... 1, a grid of 20; SVDQuant's code, "AbsMax" spans.
    """
    grid = [round(0.05 * step, 2) for step in range(21)]
    if kind == "smoothquant":
        tried = [(a, round(1.0 - a, 2)) for a in grid]
    else:
        tried = [(a, 0.0) for a in grid[1:]] + [(a, round(1.0 - a, 2)) for a in grid[1:]]
    return tuple(dict.fromkeys([NONE, *tried]))


def smoothing_factors(
    input_absmax: Tensor, weight_absmax: Tensor, alpha: float, beta: float | None = None
) -> Tensor:
    """s_j = max|X_j|^alpha / max|W_j|^beta, float64 [K]; SmoothQuant, eq. 4, with beta = 1 - alpha.

    Args:
        input_absmax: largest |x| of each input channel over tokens, batch and all timesteps, [K].
        weight_absmax: largest |w| of each input channel over the outputs of all linears that read it, [K].
        alpha: how much of the difficulty moves to the weights, 0..1.
        beta: exponent of the weights; None: 1 - alpha.

    A channel without any signal or without any weight keeps the factor 1.
    """
    inputs, weights = input_absmax.double(), weight_absmax.double()
    dead = (inputs == 0) | (weights == 0)
    factors = inputs.pow(alpha) / weights.pow(1.0 - alpha if beta is None else beta)
    return torch.where(dead, torch.ones_like(factors), factors.clamp(min=SMALLEST_FACTOR))


def weight_absmax(weights: Sequence[Tensor]) -> Tensor:
    """Largest |w| per input channel over the rows of all ``weights`` [N_i, K], [K]."""
    return torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)


@dataclass(frozen=True)
class Smoothing:
    """What a search found.

    Attributes:
        factors: float64 [K].
        exponents: of the inputs and of the weights.
        error: squared error of the outputs, summed over rows and linears, with these factors.
        plain_error: the same without smoothing.
    """

    factors: Tensor
    exponents: Exponents
    error: float
    plain_error: float


def search_smoothing(
    rows: Tensor,
    weights: Sequence[Tensor],
    input_absmax: Tensor,
    tried: Sequence[Exponents],
    quantize_input: Callable[[Tensor], Tensor],
    quantize_weight: Callable[[Tensor, int], Tensor],
    settle: Callable[[Tensor, Tensor, int, Tensor], Tensor] | None = None,
) -> Smoothing:
    """The exponents of least ``sum_i |Q(x / s) Q(W_i s)ᵀ - x W_iᵀ|²``; of equal ones the first in ``tried``.

    The objective of the grid search of DiTAS and SVDQuant, on rows of all timesteps. No smoothing is always
    among the candidates, so the result is not worse than that. Of linears with more than ``MAX_OUTPUTS``
    outputs that many count, evenly spaced: the search quantizes each weight dozens of times.

    Args:
        rows: inputs x that the linears share, float [R, K].
        weights: W_i [N_i, K] of the linears that read them.
        input_absmax: [K], over all inputs and not just ``rows``.
        tried: exponents of inputs and weights.
        quantize_input: what the run-time quantization leaves of rows [R, K].
        quantize_weight: what the storage leaves of the weight W_i s [N_i, K] of linear i.
        settle: the outputs [R, N] as they will be in the end, of x / s, W_i s, i and s [K]; where that is too
            slow to rank all candidates by. The best one and no smoothing are compared by it once more: what
            makes up for its own errors (GPTQ), or takes the outliers out of the inputs (principal
            directions), may leave too little for smoothing to gain.
    """
    largest = weight_absmax(weights)
    factors = {
        pair: smoothing_factors(input_absmax, largest, *pair) for pair in dict.fromkeys([NONE, *tried])
    }
    weights = [_evenly(weight, MAX_OUTPUTS) for weight in weights]
    outputs = [rows @ weight.T for weight in weights]

    def rounded(inputs: Tensor, weight: Tensor, index: int, scale: Tensor) -> Tensor:
        return quantize_input(inputs) @ quantize_weight(weight, index).T

    def error(pair: Exponents, run: Callable[[Tensor, Tensor, int, Tensor], Tensor]) -> float:
        scale = factors[pair].to(rows.dtype)
        inputs = rows / scale
        total = 0.0
        for index, (weight, output) in enumerate(zip(weights, outputs, strict=True)):
            difference = run(inputs, weight * scale, index, scale).sub_(output)
            total += float(difference.square_().sum(dtype=torch.float64))
        return total

    errors = {pair: error(pair, rounded) for pair in factors}
    best = min(errors, key=errors.__getitem__)
    if settle is not None and best != NONE:
        errors = {pair: error(pair, settle) for pair in (NONE, best)}
        best = min(errors, key=errors.__getitem__)
    return Smoothing(factors[best], best, errors[best], errors[NONE])


def _evenly(weight: Tensor, count: int) -> Tensor:
    """``count`` evenly spaced rows of ``weight`` [N, K]; all where there are no more."""
    if len(weight) <= count:
        return weight
    return weight[torch.arange(count) * len(weight) // count]
