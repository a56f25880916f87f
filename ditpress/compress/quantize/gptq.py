"""GPTQ: round column by column, and let the columns that are still to come make up for every error.

Frantar, Ashkboos, Hoefler & Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, algorithm 1. For every row it makes ``e H eᵀ`` small, with ``e = ŵ - w`` and H the
second moment of the layer's inputs: the squared error of the output. Rounding column j of what is left gives
the error ``(w_j - ŵ_j) / U_jj``, of which the columns k > j take ``U_jk`` each; U is the upper Cholesky
factor of ``(H + λ 1)⁻¹``.

Pure mathematics, tensors in and tensors out; float64 throughout, as the sums over columns run long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.compress.quantize.grid import grid_of
from ditpress.compress.quantize.scales import reciprocal
from ditpress.errors import InputError, StageError
from ditpress.kernels.formats import Format

DAMPING = 0.01
"""λ as a share of the mean diagonal of H: 1 % (section 3.3, step 3)."""

BLOCK = 128
"""Columns whose updates of all later columns are applied at once (section 3.3, step 2)."""

_RAISES = 6  # times that λ is multiplied by ten where H + λ 1 is not positive definite in float64


def gptq(
    weight: Tensor,
    scale: Tensor,
    format: Format,
    second_moment: Tensor,
    table: Tensor | None = None,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    block: int = BLOCK,
    name: str = "weight",
) -> Tensor:
    """The codes of ``weight``.

    Groups are static: ``scale`` belongs to the columns as they stand in the weight, whatever the order in
    which they are rounded, so that ``act_order`` costs nothing when the layer runs.

    Args:
        weight: float [N, K].
        scale: [N, G], one for every K / G columns; 0 makes its weights 0.
        format: a format of single values.
        second_moment: [K, K], the mean of ``xᵀ x`` over the inputs x [K]; any factor of it will do.
        table: of a format with several tables the one of every row, whole numbers [N].
        damping: see ``DAMPING``.
        act_order: round the columns with the largest inputs first, as the authors' code offers: they then
            have the most columns left to make up for them.
        block: see ``BLOCK``; it decides the speed, not the result.
        name: the layer, for errors.

    Returns:
        uint8 [N, K]. A column whose input is always 0 is rounded to nearest and takes no part in the rest.
        With a diagonal second moment this is round to nearest.

    Raises:
        InputError: the second moment does not fit the weight, or is not finite.
        StageError: it is not positive semidefinite.
    """
    columns = weight.shape[1]
    check_second_moment(second_moment, columns, name)
    moment = second_moment.double()
    diagonal = moment.diagonal()
    order = torch.arange(columns)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    factor = inverse_factor(moment[order][:, order], damping, name)
    grid = grid_of(format)
    group_size = columns // scale.shape[1]
    scales, inverses = scale.float().t().contiguous(), reciprocal(scale).t().contiguous()  # [G, N]
    left = weight.detach().double()[:, order]
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    for start in range(0, columns, block):
        stop = min(columns, start + block)
        rows = left[:, start:stop].t().contiguous()  # [block, N]: a column is then contiguous
        errors = torch.empty_like(rows)
        for j in range(stop - start):
            place = int(order[start + j])
            group = place // group_size
            code = grid.codes_of_nearest(rows[j].float() * inverses[group], table)
            rounded = grid.values_of(code, table).double() * scales[group].double()
            line = factor[start + j, start + j : stop]
            errors[j] = (rows[j] - rounded) / line[0]
            rows[j + 1 :].addcmul_(line[1:, None], errors[j], value=-1.0)
            codes[:, place] = code
        left[:, stop:].addmm_(errors.t(), factor[start:stop, stop:], alpha=-1.0)
    return codes


def inverse_factor(second_moment: Tensor, damping: float, name: str = "weight") -> Tensor:
    """U, float64 upper triangular [K, K] with ``Uᵀ U = (H + λ 1)⁻¹``, for H = ``second_moment`` float64.

    λ is ``damping`` times the mean diagonal, and rises tenfold as long as the Cholesky factorization fails.
    Columns of zeros (dead inputs) get a one on the diagonal: they are decoupled from the others.

    Raises:
        StageError: no λ up to a million times ``damping`` makes the matrix positive definite.
    """
    diagonal = second_moment.diagonal()
    dead = diagonal == 0
    mean = float(diagonal.mean())
    for power in range(_RAISES + 1):
        damped = second_moment.clone()
        damped.diagonal().add_(damping * 10.0**power * mean)
        damped.diagonal()[dead] = 1.0
        # H = V Vᵀ with V upper triangular is the Cholesky factorization with rows and columns turned
        # around, and U = V⁻¹: the inverse of H itself is never formed.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            upper = lower.flip(0, 1)
            eye = torch.eye(len(upper), dtype=upper.dtype)
            return torch.linalg.solve_triangular(upper, eye, upper=True)
    raise StageError(
        f"{name}: the second moment of its inputs is not positive semidefinite, even damped; "
        "calibrate with more samples, or use rounding: nearest"
    )


def output_error(error: Tensor, second_moment: Tensor) -> float:
    """tr(E H Eᵀ): the mean squared error of the output per input row, summed over outputs.

    Args:
        error: float [N, K], the weight's.
        second_moment: [K, K].
    """
    error = error.float()
    return float(((error @ second_moment.float()).double() * error).sum())


def check_second_moment(second_moment: Tensor, columns: int, name: str) -> None:
    """Raise InputError unless ``second_moment`` is finite, not all zero, and [columns, columns]."""
    if second_moment.shape != (columns, columns):
        raise InputError(
            f"{name}: second moment of its inputs is {list(second_moment.shape)}, expected "
            f"[{columns}, {columns}]; collect it from this layer"
        )
    diagonal = second_moment.diagonal()
    if not bool(torch.isfinite(second_moment).all()) or not bool((diagonal >= 0).all()):
        raise InputError(
            f"{name}: its inputs are NaN or infinite in calibration; check the checkpoint, or skip it"
        )
    if not bool((diagonal > 0).any()):
        raise InputError(f"{name}: its inputs are all zero in calibration; use rounding: nearest, or skip it")
