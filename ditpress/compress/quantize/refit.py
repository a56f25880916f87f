"""Scales of least output error for codes that are already chosen: linear least squares, row by row.

For a row with the codebook values v, split into G groups, the output error
``(w - Σ_g s_g v_g) H (w - Σ_g s_g v_g)ᵀ`` is a quadratic function of its G scales; its minimum solves
``A s = b`` with ``A_gh = v_g H_gh v_hᵀ`` and ``b_g = w H_:g v_gᵀ``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGE = 1e-9  # of the mean diagonal of A: groups whose values are all zero would make it singular


def refit_scale(weight: Tensor, values: Tensor, scale: Tensor, second_moment: Tensor) -> Tensor:
    """The scales that fit ``values`` best to ``weight``, in the dtype of ``scale``.

    Args:
        weight: float [N, K].
        values: float [N, K], what the codes stand for, without scale.
        scale: [N, G], the scales so far; a row keeps them where the new ones, as stored, are no better.
        second_moment: [K, K].

    Returns:
        [N, G]; 0 stays 0.
    """
    rows, columns = weight.shape
    groups = scale.shape[1]
    size = columns // groups
    moment, target, v = second_moment.double(), weight.double(), values.double()
    matrix = torch.empty(rows, groups, groups, dtype=torch.float64)
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        matrix[:, g] = ((v[:, part] @ moment[part]) * v).view(rows, groups, size).sum(-1)
    right = ((target @ moment) * v).view(rows, groups, size).sum(-1)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    ridge = _RIDGE * diagonal.mean(dim=1, keepdim=True) + torch.finfo(torch.float64).tiny
    free = (diagonal > 0) & (scale != 0)
    diagonal.add_(ridge)
    found = torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)
    limit = torch.finfo(scale.dtype).max
    found = torch.where(free, found.clamp(-limit, limit), scale.double()).to(scale.dtype)

    def error(candidate: Tensor) -> Tensor:
        e = target - v * candidate.double().repeat_interleave(size, dim=1)
        return ((e @ moment) * e).sum(dim=1)

    better = torch.isfinite(found).all(dim=1) & (error(found) < error(scale))
    return torch.where(better[:, None], found, scale)
