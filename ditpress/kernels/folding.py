"""Group scales multiplied into 8-bit weights: the layer then runs with one scale per output channel.

With the int8 codebook values v of a weight, G > 1 groups and m the largest magnitude in the codebook (in the
channel's own table of 16, where it has several):

    s1[n]   = max_g |scale[n, g]| * m / 127                           (float32, in this order)
    gs[n,g] = rint(128 * scale[n, g] / s1[n])                         (float32, half to even; fits int16)
    w8[n,k] = clamp(floor((v * gs[n, g] + 64) / 128), -128, 127)      (integers)

``s1 * w8`` is off from ``scale * v`` by at most s1, one step of 8 bits over the range of the channel. With
s1 = 0 a channel has gs = 0 and w8 = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold_scales(
    values: Tensor, scale: Tensor, codebook: Tensor, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fold the group scales of some output channels.

    Args:
        values: whole numbers of the codebook as float32 ``[n, K]``.
        scale: float32 or float16 ``[n, G]``.
        codebook: int8 ``[entries, d]`` that the values are of.
        table: uint8 ``[n]``, which 16 entries of the codebook each channel uses, or None.

    Returns:
        ``(w8, s1)``: int8 ``[n, K]`` and float32 ``[n, 1]``.
    """
    out_features, groups = scale.shape
    scale = scale.float()
    largest = codebook.float().abs()
    largest = largest.max() if table is None else largest.view(-1, 16).amax(dim=1, keepdim=True)[table.int()]
    # Tensors, because torch turns a quotient with a Python number into a product with a rounded reciprocal.
    peak = scale.abs().amax(dim=1, keepdim=True) * largest
    s1 = peak / torch.full_like(peak, 127.0)
    factors = ((128.0 * scale) / torch.where(s1 == 0, 1.0, s1)).round()
    factors = torch.where(s1 == 0, 0.0, factors).int().unsqueeze(-1)
    products = values.view(out_features, groups, -1).int() * factors
    w8 = ((products + 64) >> 7).clamp_(-128, 127)  # the shift rounds down, also below zero
    return w8.to(torch.int8).view(out_features, -1), s1
