"""The best scale of the table -1, 0, 1: ternary weight networks (Li, Zhang & Liu 2016), solved exactly.

With scale s the k weights of largest magnitude become ±s and the others 0. For a given k the squared error
is least at s = mean of these magnitudes, and is then ``sum w² - (sum of the k largest)² / k``: trying every k
over the sorted magnitudes finds the optimum, which a list of clip ratios misses for long tails.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ternary_scale(groups: Tensor) -> Tensor:
    """The scale of least squared error of every row of ``groups``: float32 ``[R, g]`` to float64 ``[R]``."""
    sums = groups.abs().sort(dim=1, descending=True).values.double().cumsum(dim=1)
    means = sums / torch.arange(1, groups.shape[1] + 1)
    best = (sums * means).argmax(dim=1, keepdim=True)
    return means.gather(1, best).squeeze(1)
