"""The columns that stay take over what those that go have done, as far as the inputs allow.

A linear reads x, of which only x_S remains. The weights of least squared error of its output are

    W' = W_S + W_R C_RS (C_SS + λ)⁻¹,    b' = b + W_R μ_R - (W' - W_S) μ_S ,

with C the covariance of x over all recorded calls, μ its mean, S what stays and R what goes: the closed form
of optimal brain surgery for a set of columns (Frantar & Alistarh 2022, "Optimal Brain Compression"; SlimGPT,
Ling et al. 2024, cuts heads and hidden units of language models so). Damping λ, a share of the mean
diagonal, shrinks the correction, and not the weights themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01


def reconstruct(
    weight: Tensor,
    bias: Tensor | None,
    columns: Tensor,
    second_moment: Tensor,
    mean: Tensor,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor | None]:
    """Weight [N, |S|] and bias [N] or None that give ``weight x + bias`` from the columns that stay, float64.

    Args:
        weight: [N, K].
        bias: [N]; None: the inputs are not centred, and there is no bias after it either.
        columns: bool [K], true for what stays.
        second_moment: E[x xᵀ], [K, K].
        mean: E[x], [K].
        damping: λ over the mean of the diagonal of C_SS.
    """
    weight, moment, mean = weight.double(), second_moment.double(), mean.double()
    if bias is not None:
        moment = moment - torch.outer(mean, mean)
    stays, goes = columns.nonzero()[:, 0], (~columns).nonzero()[:, 0]
    inner = moment[stays][:, stays]
    level = float(inner.diagonal().mean())
    if level <= 0.0:  # what stays is constant: nothing to take over with but the bias
        correction = torch.zeros_like(weight[:, stays])
    else:
        inner = inner + damping * level * torch.eye(len(stays), dtype=torch.float64, device=inner.device)
        pulled = moment[stays][:, goes] @ weight[:, goes].T
        correction = torch.linalg.solve(inner, pulled).T
    found = weight[:, stays] + correction
    if bias is None:
        return found, None
    return found, bias.double() + weight[:, goes] @ mean[goes] - correction @ mean[stays]
