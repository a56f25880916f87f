"""How many units a layer keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def keep_count(count: int, ratio: float, round_to: int) -> int:
    """The multiple of ``round_to`` next to ``count * (1 - ratio)``, the larger of two; at most ``count``."""
    if ratio == 0.0:
        return count
    # A ratio such as 0.9 is a little off: what is meant to be a half, is one.
    wanted = round(count * (1.0 - ratio), 9)
    return min(count, math.floor(wanted / round_to + 0.5) * round_to)


def best(scores: Tensor, keep: int) -> Tensor:
    """Bool [..., n] with the ``keep`` largest of ``scores`` [..., n]; of equal ones the first."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :keep]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)


def allot(scores: Sequence[Tensor], keeps: Sequence[int], round_to: int) -> list[int]:
    """As many units as ``keeps`` in all, but where they matter: how many of each layer.

    The units of a layer, best first, go in blocks of ``round_to``; the blocks of all layers compete by their
    mean score. Every layer keeps its best block.
    """
    means: list[tuple[float, int, int]] = []
    left = 0
    for layer, (own, keep) in enumerate(zip(scores, keeps, strict=True)):
        blocks = torch.sort(own, descending=True).values.split(round_to)
        means += [(-float(block.mean()), layer, index) for index, block in enumerate(blocks) if index]
        left += math.ceil(keep / round_to) - 1
    result = [min(round_to, len(own)) for own in scores]
    # Within a layer the means fall, so what is taken of it are its first blocks.
    for _, layer, index in sorted(means)[:left]:
        result[layer] = min(len(scores[layer]), (index + 1) * round_to)
    return result
