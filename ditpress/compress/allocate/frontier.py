"""From measured errors to the allocation for a budget: the frontier, and points of it measured end to end.

Errors of single layers add up while they are small. In low bits they do not: an error early in the model
meets the errors of all later layers. So the sum only proposes: chosen is what the whole model measures
best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditpress.compress.allocate.knapsack import Allocation, Choice, fill, frontier, hull, total, within
from ditpress.progress import track
from ditpress.validate.paired import decibel


@dataclass(frozen=True)
class Point:
    """An allocation of the whole model.

    Attributes:
        picks: format of every layer, by its index among the candidates.
        bits: stored, of the whole transformer.
        predicted: sum of the errors of the single layers.
        measured: of all layers at once; None: not measured.
    """

    picks: Mapping[str, int]
    bits: int
    predicted: float
    measured: float | None = None


class Problem:
    """Errors and stored bits of every layer in every format that it can take.

    Args:
        costs, errors: layer name -> index of the candidate -> bits, output error.
        other_bits: what everything else in the transformer takes.
    """

    def __init__(
        self,
        costs: Mapping[str, Mapping[int, int]],
        errors: Mapping[str, Mapping[int, float]],
        other_bits: int,
    ) -> None:
        self.names = list(costs)
        self.other_bits = other_bits
        self._indices = [list(costs[name]) for name in self.names]
        self.items = [
            [Choice(costs[name][index], errors[name][index]) for index in indices]
            for name, indices in zip(self.names, self._indices, strict=True)
        ]

    def points(self) -> list[Point]:
        """The whole frontier, the smallest first."""
        return [self._point(allocation) for allocation in frontier(self.items)]

    def smallest_bits(self) -> int:
        """Of the transformer with every layer in its smallest format."""
        return self.other_bits + sum(min(choice.cost for choice in choices) for choices in self.items)

    def contenders(self, budget: int) -> list[Point]:
        """Allocations within ``budget`` bits worth measuring: the knapsack's, and the largest uniform one.

        The knapsack is solved for the errors as they are and for their square roots, which is what adds up
        where errors of layers point the same way. What a solution leaves of the budget is spent layer by
        layer.
        """
        room = budget - self.other_bits
        found: list[Allocation] = []
        roots = [[Choice(c.cost, c.error**0.5) for c in choices] for choices in self.items]
        for items in (self.items, roots):
            for best in (within(frontier(items), room), within(hull(items), room)):
                if best is not None:
                    found.append(total(self.items, fill(items, best, room).picks))
        for index in sorted({index for indices in self._indices for index in indices}):
            if all(index in indices for indices in self._indices):
                uniform = total(self.items, [indices.index(index) for indices in self._indices])
                if uniform.cost <= room:
                    found.append(total(self.items, fill(self.items, uniform, room).picks))
        return [self._point(allocation) for allocation in dict.fromkeys(found)]

    def _point(self, allocation: Allocation) -> Point:
        picks = {
            name: indices[pick]
            for name, indices, pick in zip(self.names, self._indices, allocation.picks, strict=True)
        }
        return Point(picks, self.other_bits + allocation.cost, allocation.error)


def spread_points(points: Sequence[Point], count: int) -> list[Point]:
    """``count`` points of a frontier, evenly over its sizes, the smallest and the largest among them."""
    if len(points) <= count:
        return list(points)
    low, high = points[0].bits, points[-1].bits
    wanted = [low + (high - low) * place / max(1, count - 1) for place in range(count)]
    nearest = [min(points, key=lambda point: abs(point.bits - bits)) for bits in wanted]
    return sorted({point.bits: point for point in nearest}.values(), key=lambda point: point.bits)


def measured(points: Sequence[Point], measure: Callable[[Mapping[str, int]], float]) -> list[Point]:
    """The points with their errors measured end to end."""
    return [
        Point(point.picks, point.bits, point.predicted, measure(point.picks))
        for point in track(points, "frontier", len(points))
    ]


def monotone(points: Sequence[Point]) -> list[Point]:
    """Of measured points those that no smaller or equal one beats, by rising size and falling error."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.bits, _error(point))):
        if not kept or _error(point) < _error(kept[-1]):
            kept.append(point)
    return kept


def facts(
    points: Sequence[Point],
    checked: Sequence[Point],
    chosen: Point,
    *,
    candidates: Sequence[str],
    errors: Mapping[str, Mapping[int, float]],
    parameters: int,
    budget: int,
) -> dict[str, Any]:
    """frontier.json: sizes in bytes and in bits a parameter, errors as SQNR in dB."""

    def of(point: Point) -> dict[str, Any]:
        return {
            "bytes": (point.bits + 7) // 8,
            "bits": point.bits / parameters,
            "predicted_db": decibel(1.0, point.predicted),
            "measured_db": None if point.measured is None else decibel(1.0, point.measured),
        }

    return {
        "candidates": list(candidates),
        "budget_bytes": budget // 8,
        "budget_bits": budget / parameters,
        "sensitivity_db": {
            name: {candidates[index]: decibel(1.0, error) for index, error in by_format.items()}
            for name, by_format in errors.items()
        },
        "predicted": [of(point) for point in points],
        "measured": [of(point) for point in monotone(checked)],
        "chosen": {**of(chosen), "layers": {name: candidates[i] for name, i in chosen.picks.items()}},
    }


def _error(point: Point) -> float:
    assert point.measured is not None, "measured points only"
    return point.measured
