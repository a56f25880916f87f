"""The multiple-choice knapsack: one choice for every item, least total error for every total cost.

Pure mathematics. Minimise Σ_i error[i][c_i] subject to Σ_i cost[i][c_i] ≤ budget, for all budgets at once:
the formulation of HAWQ-V2 (Dong et al. 2020, who pick from the Pareto frontier of Σ Ω_i) and of ZeroQ (Cai et
al. 2020, dynamic programming over the total size).

Two solvers. :func:`pareto` is exact: it adds item after item and keeps the totals that no other undercuts
(Nemhauser & Ullmann 1969). Their number is at most that of different total costs, which is small where many
layers have the same shape, but is not bounded. :func:`hull` is Lagrange's relaxation, solved for every
multiplier at once: it finds the totals on the lower convex hull of the exact frontier, in the time of a sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LIMIT = 20_000  # totals that the exact solver keeps at a time


@dataclass(frozen=True)
class Choice:
    """What one item may become: its cost (bits) and its error."""

    cost: int
    error: float


@dataclass(frozen=True)
class Allocation:
    """One choice for every item.

    Attributes:
        cost: total.
        error: total.
        picks: index of the choice of every item.
    """

    cost: int
    error: float
    picks: tuple[int, ...]


def frontier(items: Sequence[Sequence[Choice]], limit: int = LIMIT) -> list[Allocation]:
    """The exact frontier, or its convex hull where the exact solver would keep more than ``limit`` totals.

    Returns:
        allocations by rising cost and falling error, the cheapest possible first.

    Raises:
        ValueError: an item without choices.
    """
    exact = pareto(items, limit)
    return hull(items) if exact is None else exact


def pareto(items: Sequence[Sequence[Choice]], limit: int = LIMIT) -> list[Allocation] | None:
    """All allocations that no other beats in cost and error; None where more than ``limit`` are in play.

    Of equal cost and error the one with the earlier choices counts.
    """
    _check(items)
    costs, errors = np.zeros(1, dtype=np.int64), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for choices in items:
        # Totals of every kept total with every choice, the choice running slowest.
        cost = np.concatenate([costs + choice.cost for choice in choices])
        error = np.concatenate([errors + choice.error for choice in choices])
        kept = _undominated(cost, error)
        if len(kept) > limit:
            return None
        history.append((kept // len(costs), kept % len(costs)))
        costs, errors = cost[kept], error[kept]
    place = np.arange(len(costs))
    picks = np.empty((len(costs), len(items)), dtype=np.int16)
    for index in range(len(items) - 1, -1, -1):
        choice, before = history[index]
        picks[:, index], place = choice[place], before[place]
    return [
        Allocation(int(c), float(e), tuple(map(int, p))) for c, e, p in zip(costs, errors, picks, strict=True)
    ]


def hull(items: Sequence[Sequence[Choice]]) -> list[Allocation]:
    """The allocations that minimise ``error + λ cost`` for some λ ≥ 0, and those between two of them.

    Every item walks down its own lower convex hull; the steps of all items are taken by how much error they
    save for a unit of cost. Between two corners of the hull of totals lie the totals after each single step.
    """
    _check(items)
    corners = [_corners(choices) for choices in items]
    picks = [corner[0] for corner in corners]
    cost = sum(items[i][pick].cost for i, pick in enumerate(picks))
    error = float(sum(items[i][pick].error for i, pick in enumerate(picks)))
    steps = []
    for i, corner in enumerate(corners):
        for place, (a, b) in enumerate(pairwise(corner)):
            first, second = items[i][a], items[i][b]
            steps.append(((second.error - first.error) / (second.cost - first.cost), i, place, b))
    found = [Allocation(cost, error, tuple(picks))]
    for _, i, _, pick in sorted(steps):
        cost += items[i][pick].cost - items[i][picks[i]].cost
        error += items[i][pick].error - items[i][picks[i]].error
        picks[i] = pick
        found.append(Allocation(cost, error, tuple(picks)))
    return found


def within(allocations: Sequence[Allocation], budget: int) -> Allocation | None:
    """The allocation of least error within ``budget``; None where even the cheapest costs more."""
    fitting = [allocation for allocation in allocations if allocation.cost <= budget]
    return min(fitting, key=lambda allocation: (allocation.error, allocation.cost), default=None)


def fill(items: Sequence[Sequence[Choice]], start: Allocation, budget: int) -> Allocation:
    """Spend what ``start`` leaves of ``budget``: the single change that saves most error, until none fits."""
    picks, cost = list(start.picks), start.cost
    while True:
        moves = [
            (choice.error - items[i][picks[i]].error, i, pick)
            for i, choices in enumerate(items)
            for pick, choice in enumerate(choices)
            if choice.error < items[i][picks[i]].error
            and cost + choice.cost - items[i][picks[i]].cost <= budget
        ]
        if not moves:
            break
        _, i, pick = min(moves)
        cost += items[i][pick].cost - items[i][picks[i]].cost
        picks[i] = pick
    return total(items, picks)


def total(items: Sequence[Sequence[Choice]], picks: Sequence[int]) -> Allocation:
    """The allocation with these choices."""
    chosen = [choices[pick] for choices, pick in zip(items, picks, strict=True)]
    return Allocation(sum(c.cost for c in chosen), float(sum(c.error for c in chosen)), tuple(picks))


def _check(items: Sequence[Sequence[Choice]]) -> None:
    for index, choices in enumerate(items):
        if not choices:
            raise ValueError(f"item {index} has no choices")


def _undominated(cost: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Indices of the totals that no other undercuts, by rising cost; of equal ones the first."""
    order = np.lexsort((np.arange(len(cost)), error, cost))
    lowest = np.minimum.accumulate(error[order])
    better = np.ones(len(order), dtype=bool)
    better[1:] = error[order][1:] < lowest[:-1]
    return order[better]


def _corners(choices: Sequence[Choice]) -> list[int]:
    """The choices on the lower convex hull of (cost, error), from the cheapest to the most exact."""
    order = sorted(range(len(choices)), key=lambda i: (choices[i].cost, choices[i].error, i))
    corners: list[int] = []
    for i in order:
        if corners and choices[i].error >= choices[corners[-1]].error:
            continue  # costs as much or more, and is no better
        while len(corners) > 1 and _above(choices[corners[-2]], choices[corners[-1]], choices[i]):
            corners.pop()
        corners.append(i)
    return corners


def _above(first: Choice, middle: Choice, last: Choice) -> bool:
    """Whether ``middle`` lies on or above the line from ``first`` to ``last``."""
    left = (middle.error - first.error) * (last.cost - first.cost)
    return left >= (last.error - first.error) * (middle.cost - first.cost)
