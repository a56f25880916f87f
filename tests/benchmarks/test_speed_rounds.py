"""Medians, quartiles and ratios of rounds."""

from __future__ import annotations

import numpy as np
import pytest

from speed.rounds import ratio, runs_for, spread


def test_spread_is_numpys():
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0]
    found = spread(values)
    assert [found.low, found.median, found.high] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))


def test_spread_of_one_round():
    found = spread([2.0])
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


def test_ratio_is_taken_inside_a_round():
    # The machine is ten times slower in the second round: the ratio of the medians would be 10 / 2.
    assert ratio([1.0, 10.0, 10.0], [2.0, 20.0, 2.0]).median == 0.5


def test_ratio_of_other_rounds():
    with pytest.raises(ValueError, match="2 rounds against 1"):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no rounds"):
        ratio([], [])


@pytest.mark.parametrize(("once", "runs"), [(0.1, 8), (5.0, 2), (1e-4, 50), (0.0, 50)])
def test_runs_for_a_turn(once, runs):
    assert runs_for(0.8, once) == runs
