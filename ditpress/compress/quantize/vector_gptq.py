"""GPTQ for codewords: round sub-vector after sub-vector, and let those still to come make up for every error.

Van Baalen et al. 2024, "GPTVQ: The Blessing of Dimensionality for LLM Quantization", algorithm 1. With U, the
upper Cholesky factor of ``(H + λ 1)⁻¹`` as in :mod:`ditpress.compress.quantize.gptq`, the columns J of one
sub-vector leave the error ``e = (w_J - ŵ_J) U_JJ⁻¹``; later columns k take ``e U_Jk``, and what the choice of
the codeword costs in the end is ``e eᵀ``. So the nearest codeword is that of the sub-vector times U_JJ⁻¹
among the codewords times U_JJ⁻¹; with one column it is GPTQ itself.

Pure mathematics, tensors in and tensors out; float64 but for the choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.compress.quantize.gptq import BLOCK, DAMPING, check_second_moment, inverse_factor
from ditpress.compress.quantize.kmeans import nearest
from ditpress.compress.quantize.scales import reciprocal


def vector_gptq(
    weight: Tensor,
    scale: Tensor,
    codebook: Tensor,
    second_moment: Tensor,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    block: int = BLOCK,
    name: str = "weight",
) -> Tensor:
    """The codes of ``weight``: ``W[n, k] ~ scale[n] * codebook[code[n, k // d]][k % d]``.

    Args:
        weight: float [N, K].
        scale: [N, 1]; 0 makes its weights 0.
        codebook: [E, d]; d divides K.
        second_moment: [K, K], the mean of ``xᵀ x`` over the inputs x [K].
        damping, act_order, block: as in GPTQ; whole sub-vectors are put in order, by their mean input.
        name: the layer, for errors.

    Returns:
        int64 [N, K / d].

    Raises:
        InputError, StageError: as :func:`ditpress.compress.quantize.gptq.gptq`.
    """
    rows, columns = weight.shape
    length = codebook.shape[1]
    check_second_moment(second_moment, columns, name)
    moment = second_moment.double()
    order = torch.arange(columns // length)
    if act_order:
        importance = moment.diagonal().view(-1, length).sum(dim=1)
        order = torch.argsort(importance, descending=True, stable=True)
    places = (order[:, None] * length + torch.arange(length)).flatten()
    factor = inverse_factor(moment[places][:, places], damping, name)
    scales, inverses = scale.double(), reciprocal(scale).double()
    words, ones = codebook.double(), torch.ones(rows, length)
    left = weight.detach().double()[:, places]
    codes = torch.empty(rows, columns // length, dtype=torch.int64)
    width = max(1, block // length) * length
    for start in range(0, columns, width):
        stop = min(columns, start + width)
        errors = torch.empty(rows, stop - start, dtype=torch.float64)
        for j in range(start, stop, length):
            part = slice(j, j + length)
            own = factor[part, part]
            points, entries = (_times_inverse(x, own) for x in (left[:, part] * inverses, words))
            code, _ = nearest(points.float(), ones, entries.float())
            error = _times_inverse(left[:, part] - words[code] * scales, own)
            left[:, j + length : stop].addmm_(error, factor[part, j + length : stop], alpha=-1.0)
            errors[:, j - start : j - start + length] = error
            codes[:, int(order[j // length])] = code
        left[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1.0)
    return codes


def _times_inverse(rows: Tensor, upper: Tensor) -> Tensor:
    """``rows`` times the inverse of the upper triangular ``upper``."""
    return torch.linalg.solve_triangular(upper, rows, upper=True, left=False)
