"""The knapsack against trying everything."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditpress.compress.allocate.knapsack import Choice, fill, frontier, hull, pareto, total, within

# Errors are multiples of 1/64, so that sums are exact and ties are real ties.
choice = st.builds(Choice, st.integers(0, 12), st.integers(0, 640).map(lambda n: n / 64))
problem = st.lists(st.lists(choice, min_size=1, max_size=4), min_size=1, max_size=5)


def everything(items):
    return [total(items, picks) for picks in product(*(range(len(choices)) for choices in items))]


def least_error(allocations, budget):
    return min((a.error for a in allocations if a.cost <= budget), default=None)


@settings(deadline=None)
@given(problem)
def test_the_exact_frontier_is_best_for_every_budget(items):
    found, every = pareto(items), everything(items)
    assert [(a.cost, a.error) for a in found] == sorted({(a.cost, a.error) for a in found})
    assert all(a.error > b.error for a, b in pairwise(found))
    assert all(a == total(items, a.picks) for a in found)
    for budget in range(-1, 62):
        pick = within(found, budget)
        assert (None if pick is None else pick.error) == least_error(every, budget)


@settings(deadline=None)
@given(problem, st.integers(0, 6400).map(lambda n: n / 64))
def test_the_hull_is_best_for_every_price(items, price):
    found = hull(items)
    assert all(a == total(items, a.picks) for a in found)
    assert min(a.error + price * a.cost for a in found) == pytest.approx(
        min(a.error + price * a.cost for a in everything(items)), abs=1e-9
    )
    assert all(a.cost < b.cost and a.error > b.error for a, b in pairwise(found))


@settings(deadline=None)
@given(problem, st.integers(0, 60))
def test_filling_never_breaks_the_budget_and_never_loses(items, budget):
    start = within(hull(items), budget)
    if start is None:
        assert least_error(everything(items), budget) is None
        return
    filled = fill(items, start, budget)
    assert start.cost <= budget
    assert filled.cost <= budget
    assert filled.error <= start.error
    assert filled == total(items, filled.picks)


def test_too_many_totals_fall_back_to_the_hull():
    generator = np.random.default_rng(0)
    costs = np.cumsum(generator.integers(1, 10**9, (10, 4)), axis=1)
    errors = np.cumsum(generator.random((10, 4)), axis=1)[:, ::-1]
    items = [
        [Choice(int(c), float(e)) for c, e in zip(*pair, strict=True)]
        for pair in zip(costs, errors, strict=True)
    ]
    assert pareto(items, limit=50) is None
    assert frontier(items, limit=50) == hull(items)
    exact = frontier(items)
    assert len(exact) > len(hull(items))
    for corner in hull(items):
        assert within(exact, corner.cost).error <= corner.error + 1e-12


def test_as_many_layers_as_a_large_model_has():
    """196 layers of four shapes with five formats each, as DiT-XL/2: exact, because many totals coincide."""
    generator = np.random.default_rng(1)
    shapes = [1152 * 1152, 1152 * 4608, 4608 * 1152, 1152 * 6912]
    items = [
        [
            Choice(int(size * bits), float(size * generator.uniform(0.5, 2) * 4.0**-bits))
            for bits in (2, 3, 4, 6, 8)
        ]
        for size in [shapes[index % 4] for index in range(196)]
    ]
    exact = frontier(items)
    corners = hull(items)
    assert len(exact) > len(corners)
    for corner in corners[:: len(corners) // 20]:
        assert within(exact, corner.cost).error <= corner.error * (1 + 1e-9)


def test_an_item_without_choices_is_refused():
    with pytest.raises(ValueError, match="item 1 has no choices"):
        frontier([[Choice(1, 1.0)], []])
