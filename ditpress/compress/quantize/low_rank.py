"""A low-rank branch beside a quantized weight: ``W ≈ Ŵ + L R``, found by turns.

Two schedules of the same two steps, "quantize W - L R" and "L R = the best rank r approximation of W - Ŵ":

- ``loftq`` (Li et al., "LoftQ", ICLR 2024, algorithm 1; DiTAS takes it over with rank 32 and 10 turns): L R
  starts at zero, so that the branch holds what rounding loses.
- ``svdquant`` (Li et al., "SVDQuant", ICLR 2025, section 4.2 and its code): L R starts as the largest part
  of W itself, so that what is quantized has a smaller range; up to 100 turns, ended by the first that does
  not improve the output error.

Both keep the best turn. With the second moment H of the inputs the error is that of the output,
tr(E H Eᵀ), and the approximation may be the best for it: for H = C Cᵀ it comes from the singular vectors of
E C (as in SVD-LLM, Wang et al., ICLR 2025, section 3.1).

Pure mathematics, tensors in and tensors out. Singular values are split evenly, their roots go to both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ditpress.compress.quantize.fitted import FittedWeight
from ditpress.compress.quantize.gptq import output_error

EXACT = 512  # up to so many rows or columns the singular vectors are computed exactly
OVERSAMPLING, POWER_STEPS = 16, 4  # of the randomized ones (Halko, Martinsson & Tropp 2011, section 4.5)
DAMPING = 1e-6  # of the mean diagonal of H, so that its Cholesky factor can be inverted


@dataclass(frozen=True)
class LowRank:
    """A branch and the weight it was found with, as stored.

    Attributes:
        up: [N, r].
        down: [r, K].
        weight: [N, K], what is added to the product of the two.
        error: squared error of the sum: of the output where a second moment was given.
    """

    up: FittedWeight
    down: FittedWeight
    weight: FittedWeight
    error: float

    def dequantize(self) -> Tensor:
        """The sum, float32 [N, K]."""
        return self.weight.dequantize() + self.branch()

    def branch(self) -> Tensor:
        """``up @ down``, float32 [N, K]."""
        return self.up.dequantize() @ self.down.dequantize()


def fit_low_rank(
    weight: Tensor,
    rank: int,
    quantize: Callable[[Tensor], FittedWeight],
    store: Callable[[Tensor], FittedWeight],
    *,
    method: Literal["loftq", "svdquant"] = "loftq",
    iterations: int = 10,
    second_moment: Tensor | None = None,
    whiten: bool = True,
    generator: torch.Generator | None = None,
) -> LowRank:
    """The branch of rank ``rank`` and the quantized weight that together are closest to ``weight``.

    Args:
        weight: float [N, K].
        rank: at most min(N, K).
        quantize: a float weight [N, K] as it will be stored.
        store: the same for ``up`` and ``down``: what the storage of the branch loses counts in every turn.
        method: see the module's text.
        iterations: turns at most.
        second_moment: of the inputs, [K, K]; None: the error of the weight counts.
        whiten: use it for the approximation too, not only to judge.
        generator: of the start of the randomized singular vectors of large weights.
    """
    target = weight.detach().float()
    factor = None
    if second_moment is not None and whiten:
        factor = _cholesky(second_moment)

    def approximate(matrix: Tensor) -> tuple[FittedWeight, FittedWeight]:
        up, down = best_approximation(matrix, rank, factor, generator)
        return store(up), store(down)

    def judged(up: FittedWeight, down: FittedWeight, quantized: FittedWeight) -> LowRank:
        found = LowRank(up, down, quantized, 0.0)
        error = found.dequantize() - target
        if second_moment is None:
            return replace(found, error=float(error.double().square().sum()))
        return replace(found, error=output_error(error, second_moment))

    best: LowRank | None = None
    if method == "svdquant":
        pair = approximate(target)
        for _ in range(iterations):
            now = judged(*pair, quantize(target - _product(pair)))
            if best is not None and now.error >= best.error:
                break
            best = now
            pair = approximate(target - now.weight.dequantize())
    else:
        quantized = quantize(target)
        for turn in range(iterations):
            pair = approximate(target - quantized.dequantize())
            now = judged(*pair, quantized)
            if best is None or now.error < best.error:
                best = now
            if turn + 1 < iterations:
                quantized = quantize(target - _product(pair))
    assert best is not None, "at least one turn"
    return best


def _product(pair: tuple[FittedWeight, FittedWeight]) -> Tensor:
    return pair[0].dequantize() @ pair[1].dequantize()


def best_approximation(
    matrix: Tensor, rank: int, factor: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """``(up [N, r], down [r, K])``, float32: their product is the matrix of rank r closest to ``matrix``.

    Args:
        matrix: float [N, K].
        rank: r.
        factor: C, float64 lower triangular [K, K]: closest by the norm of ``(matrix - up @ down) C``.
        generator: see :func:`fit_low_rank`.
    """
    scaled = matrix.double() if factor is None else matrix.double() @ factor
    u, s, v = largest_singular(scaled, rank, generator)
    root = s.sqrt()
    down = root[:, None] * v
    if factor is not None:
        down = torch.linalg.solve_triangular(factor, down, upper=False, left=False)
    return (u * root).float(), down.float()


def largest_singular(
    matrix: Tensor, rank: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` singular vectors and values of ``matrix`` [N, K]: [N, r], [r], [r, K].

    Large ones are approximated, with ``generator`` (seed 0 where it is None) for the start.
    """
    if min(matrix.shape) > EXACT:
        width = min(rank + OVERSAMPLING, *matrix.shape)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        basis = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, generator=generator)
        for _ in range(POWER_STEPS):
            basis = torch.linalg.qr(matrix.t() @ torch.linalg.qr(matrix @ basis).Q).Q
        basis = torch.linalg.qr(matrix @ basis).Q
        u, s, v = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
        u = basis @ u
    else:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], v[:rank]


def _cholesky(second_moment: Tensor) -> Tensor:
    """C, float64 lower triangular, with ``C Cᵀ`` = the second moment, slightly damped."""
    moment = second_moment.double().clone()
    moment.diagonal().add_(DAMPING * float(moment.diagonal().mean()))
    for _ in range(6):
        factor, failed = torch.linalg.cholesky_ex(moment)
        if not int(failed):
            return factor
        moment.diagonal().add_(10 * DAMPING * float(moment.diagonal().mean()))
    return torch.linalg.cholesky(moment)
