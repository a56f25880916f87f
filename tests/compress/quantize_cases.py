"""Inputs, weights and slow float64 truths for the tests of rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ditpress.kernels.formats import Format


def correlated(columns: int, rows: int = 400, seed: int = 0, rank: int | None = None) -> Tensor:
    """Second moment [K, K] of inputs that share directions and differ in size, and are not centred."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank or columns, columns, generator=generator)
    sizes = torch.exp(torch.randn(columns, generator=generator))
    x = torch.randn(rows, rank or columns, generator=generator) @ mix * sizes
    x += 0.5 * sizes
    return x.t() @ x / rows


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.05


def usable(format: Format) -> np.ndarray:
    """Codebook values by code, NaN where a quantizer must not use the code (int8's -128)."""
    values = format.codebook_tensor().flatten().double().numpy()
    return np.where(values < -127, np.nan, values)


def error_of(weight: Tensor, stored: Tensor, moment: Tensor) -> float:
    """tr(E H Eᵀ) in float64."""
    e = stored.double().numpy() - weight.double().numpy()
    return float(np.einsum("nk,kl,nl->", e, moment.double().numpy(), e))
