"""Weighted k-means over sub-vectors, with k-means++ and repair of empty clusters.

Points come as two tensors: ``pull = b x`` and ``pressure = b``, both [M, d], for sub-vectors x and a weight b
of every single coordinate. The cost of codeword c for point m is ``sum_d b x² - 2 pull c + pressure c²``; its
first term never changes a choice and is left out of :func:`costs`. Nothing is divided by b, so coordinates
that do not count (b = 0) need no special case.

Memory: beyond tensors of the size of the points, one chunk of costs (``CHUNK`` numbers); none where
:func:`nearest` runs on the C++ kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.cpu import isa
from ditpress.kernels.cpu.nearest import run_nearest

CHUNK = 1 << 20  # costs held at once: 4 MB, near the cores; bounds the memory, not the result


def chunks(points: int, codewords: int) -> Iterator[slice]:
    """Slices of the points whose costs for all codewords fill one chunk."""
    step = max(1, CHUNK // codewords)
    for start in range(0, points, step):
        yield slice(start, min(start + step, points))


def costs(pull: Tensor, pressure: Tensor, codebook: Tensor) -> Tensor:
    """``sum_d pressure c² - 2 pull c``: [M, d], [M, d], codebook [E, d] to [M, E]. The caller chunks."""
    return torch.cat((pressure, pull), dim=1) @ torch.cat((codebook.square(), -2.0 * codebook), dim=1).T


def nearest(pull: Tensor, pressure: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest codeword of every point, int64 [M], and its cost as in :func:`costs`, [M].

    Of equally cheap ones the first. float32 on the C++ kernels where they were built.

    Raises:
        InputError: a codeword is not finite, or a point's cost: it holds NaN or what float32 cannot square.
    """
    if not bool(torch.isfinite(codebook).all()):
        raise InputError("k-means: the codebook holds NaN or infinite values; check the weights and scales")
    if pull.dtype == torch.float32 and isa() != "reference":
        codes, cost = run_nearest(pull, pressure, codebook)
    else:
        codes = torch.empty(len(pull), dtype=torch.int64)
        cost = torch.empty(len(pull), dtype=pull.dtype)
        for part in chunks(len(pull), len(codebook)):
            cost[part], codes[part] = costs(pull[part], pressure[part], codebook).min(dim=1)
    if not bool(torch.isfinite(cost).all()):
        raise InputError(
            "k-means: points whose distances are no finite numbers; check the weights, their second moments "
            "and the scales"
        )
    return codes, cost


def nearest_few(pull: Tensor, pressure: Tensor, codebook: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` cheapest codewords of every point, cheapest first: int64 [M, count], costs [M, count]."""
    codes = torch.empty((len(pull), count), dtype=torch.int64)
    cost = torch.empty((len(pull), count), dtype=pull.dtype)
    for part in chunks(len(pull), len(codebook)):
        found = costs(pull[part], pressure[part], codebook).topk(count, dim=1, largest=False)
        cost[part], codes[part] = found.values, found.indices
    return codes, cost


def plus_plus(pull: Tensor, pressure: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` points as first codewords, [count, d]: k-means++ (Arthur & Vassilvitskii 2007).

    Every next one is drawn with a probability proportional to its cost under those drawn so far. When all
    points are met exactly, further ones are drawn evenly: duplicates, which the repair has no use for either.
    """
    points = pull / pressure.where(pressure > 0, 1.0)
    own = (pull * points).sum(dim=1)  # b x², what costs() leaves out
    drawn = [int(torch.randint(len(points), (1,), generator=generator))]
    least = torch.full_like(own, torch.inf)
    while True:
        codeword = points[drawn[-1]]
        distance = own + (pressure * codeword.square() - 2.0 * pull * codeword).sum(dim=1)
        distance[drawn[-1]] = 0.0  # exactly, not to rounding
        least = torch.minimum(least, distance.clamp_(min=0.0))
        if len(drawn) == count:
            return points[drawn]
        cumulated = least.double().cumsum(dim=0)
        place = torch.rand(1, generator=generator, dtype=torch.float64)
        if float(cumulated[-1]) > 0:
            index = int(torch.searchsorted(cumulated, place * cumulated[-1], right=True))
        else:
            index = int(place * len(points))
        drawn.append(min(index, len(points) - 1))


def centroids(pull: Tensor, pressure: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    """The best codeword of every cluster, ``sum pull / sum pressure``; where nothing presses the old one."""
    total = torch.zeros(codebook.shape, dtype=torch.float64).index_add_(0, codes, pull.double())
    weight = torch.zeros(codebook.shape, dtype=torch.float64).index_add_(0, codes, pressure.double())
    return torch.where(weight > 0, total / weight.where(weight > 0, 1.0), codebook.double()).to(
        codebook.dtype
    )


def repair(pull: Tensor, pressure: Tensor, codes: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Give every empty cluster a part of the cluster with most error.

    The empty codeword goes to the worst point of that cluster, and the members nearer to it than to their
    own codeword follow. One member, the best served, always stays. The total cost never grows.

    Returns:
        ``(codes, codebook)``, changed copies. No cluster is empty, unless every cluster with error has one
        member only: the points are then met exactly by the next centroids.
    """
    empty = (torch.bincount(codes, minlength=len(codebook)) == 0).nonzero().flatten().tolist()
    if not empty:
        return codes, codebook
    codes, codebook = codes.clone(), codebook.clone()
    points = pull / pressure.where(pressure > 0, 1.0)
    error = (pressure * (points - codebook[codes]).square()).sum(dim=1)
    for codeword in empty:
        members = torch.bincount(codes, minlength=len(codebook))
        by_cluster = torch.bincount(codes, weights=error.double(), minlength=len(codebook))
        by_cluster[members < 2] = 0.0
        if float(by_cluster.max()) <= 0.0:
            break
        inside = (codes == by_cluster.argmax()).nonzero().flatten()
        best, worst = inside[error[inside].argmin()], inside[error[inside].argmax()]
        codebook[codeword] = points[worst]
        moved = (pressure[inside] * (points[inside] - points[worst]).square()).sum(dim=1)
        follow = (moved < error[inside]) & (inside != best)
        codes[inside[follow]] = codeword
        error[inside[follow]] = moved[follow]
    return codes, codebook


def lloyd(pull: Tensor, pressure: Tensor, codebook: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """At most ``iterations`` rounds of Lloyd: assign, repair, centroids; stops when no code changes.

    Returns:
        ``(codebook, codes)``: [E, d], and the int64 [M] assignments that the last centroids are of.
    """
    codes = torch.full((len(pull),), -1, dtype=torch.int64)
    for _ in range(iterations):
        before = codes
        codes, _ = nearest(pull, pressure, codebook)
        codes, codebook = repair(pull, pressure, codes, codebook)
        codebook = centroids(pull, pressure, codes, codebook)
        if torch.equal(codes, before):
            break
    return codebook, codes
