"""The factors of the papers, and the search against brute force in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ditpress.compress.smoothing import Smoothing, candidates, search_smoothing, smoothing_factors

Array = NDArray[np.float64]


def test_factors_are_those_of_the_paper() -> None:
    inputs, weights = torch.tensor([4.0, 9.0, 0.0, 1.0, 1e-12]), torch.tensor([1.0, 4.0, 2.0, 0.0, 1.0])
    # sqrt(4 / 1), sqrt(9 / 4); a silent channel and one without weight stay; a nearly silent one is clamped
    assert smoothing_factors(inputs, weights, 0.5).tolist() == pytest.approx([2.0, 1.5, 1.0, 1.0, 1e-4])
    assert float(smoothing_factors(inputs, weights, 1.0)[0]) == pytest.approx(4.0)
    assert float(smoothing_factors(inputs, weights, 0.0)[1]) == pytest.approx(0.25)
    assert float(smoothing_factors(inputs, weights, 0.5, 0.0)[1]) == pytest.approx(3.0)
    assert smoothing_factors(inputs, weights, 0.0, 0.0).tolist() == [1.0] * 5


def test_candidates_are_the_grids_of_the_papers() -> None:
    ditas = candidates("smoothquant")
    assert ditas[0] == (0.0, 0.0)
    assert [a for a, _ in ditas[1:]] == [i / 20 for i in range(21)]
    assert all(a + b == pytest.approx(1.0) for a, b in ditas[1:])
    svdquant = candidates("svdquant")
    assert svdquant[0] == (0.0, 0.0)
    alone = {(i / 20, 0.0) for i in range(1, 21)}
    both = {(i / 20, round(1 - i / 20, 2)) for i in range(1, 21)}
    assert set(svdquant) == {(0.0, 0.0)} | alone | both
    assert len(svdquant) == len(set(svdquant)) == 40  # (1, 0) is in both


def rounded(x: Array, levels: int) -> Array:
    """Symmetric absmax rounding of every row."""
    step = np.abs(x).max(axis=1, keepdims=True) / levels
    return np.rint(x / step) * step


def brute_force(
    rows: Array, weights: list[Array], tried: tuple[tuple[float, float], ...], bits: tuple[int, int]
) -> list[float]:
    """The objective of every candidate: sum over the linears of |Q(x / s) Q(W s)ᵀ - x Wᵀ|²."""
    largest_input = np.abs(rows).max(axis=0)
    largest_weight = np.abs(np.concatenate(weights)).max(axis=0)
    errors = []
    for alpha, beta in tried:
        factor = np.maximum(largest_input**alpha / largest_weight**beta, 1e-4)
        outputs = [rounded(rows / factor, bits[0]) @ rounded(w * factor, bits[1]).T for w in weights]
        errors.append(
            sum(float(((y - rows @ w.T) ** 2).sum()) for y, w in zip(outputs, weights, strict=True))
        )
    return errors


def problem(seed: int) -> tuple[Array, list[Array]]:
    """Inputs with a few outlier channels, and two linears that read them."""
    generator = np.random.default_rng(seed)
    spread = np.exp(generator.normal(0.0, 1.2, 24))
    return generator.normal(size=(40, 24)) * spread, [generator.normal(size=(n, 24)) for n in (10, 7)]


def torch_rounded(levels: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.from_numpy(rounded(x.numpy(), levels))


def searched(
    rows: Array,
    weights: list[Array],
    tried: tuple[tuple[float, float], ...],
    stored: Callable[[torch.Tensor, int], torch.Tensor] = lambda weight, index: torch_rounded(7)(weight),
    settled: Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor], torch.Tensor] | None = None,
) -> Smoothing:
    """The search with inputs of 8 bits."""
    return search_smoothing(
        torch.from_numpy(rows),
        [torch.from_numpy(weight) for weight in weights],
        torch.from_numpy(np.abs(rows).max(axis=0)),
        tried,
        torch_rounded(127),
        stored,
        settled,
    )


@pytest.mark.parametrize("kind", ["smoothquant", "svdquant"])
@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_brute_force_finds(kind: str, seed: int) -> None:
    rows, weights = problem(seed)
    tried = candidates(kind)  # type: ignore[arg-type]
    errors = brute_force(rows, weights, tried, (127, 7))
    found = searched(rows, weights, tried)
    best = int(np.argmin(errors))
    assert found.exponents == tried[best]
    assert found.error == pytest.approx(errors[best], rel=1e-9)
    assert found.plain_error == pytest.approx(errors[0], rel=1e-9)
    assert best > 0  # outliers: smoothing pays, otherwise this would not test the search


def test_of_many_outputs_evenly_spaced_ones_decide_and_all_weights_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, weights = problem(0)
    heavy = np.concatenate([weights[0], weights[0][:1] * 3.0])  # only the last row, left out, is this large
    count = len(heavy) // 2
    monkeypatch.setattr("ditpress.compress.smoothing.MAX_OUTPUTS", count)
    seen = []

    def quantized(weight: torch.Tensor, index: int) -> torch.Tensor:
        seen.append(weight)
        return weight

    found = searched(rows, [heavy], ((0.5, 0.5),), quantized)
    picked = [index * len(heavy) // count for index in range(count)]
    assert len(heavy) - 1 not in picked
    factors = np.abs(rows).max(axis=0) ** 0.5 / np.abs(heavy).max(axis=0) ** 0.5
    np.testing.assert_array_equal(seen[0], heavy[picked])  # without smoothing, tried first
    np.testing.assert_allclose(seen[1], heavy[picked] * factors, rtol=1e-12)
    errors = [
        (((rounded(rows / s, 127) @ (heavy[picked] * s).T) - rows @ heavy[picked].T) ** 2).sum()
        for s in (np.ones_like(factors), factors)
    ]
    assert found.plain_error == pytest.approx(errors[0], rel=1e-9)
    assert found.error == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize("levels", [7, 3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_is_taken_only_where_it_pays_with_the_final_rounding(seed: int, levels: int) -> None:
    """Ranked at 7 levels a weight, settled at other numbers of levels."""
    rows, weights = problem(seed)
    tried = candidates("smoothquant")
    best = tried[int(np.argmin(brute_force(rows, weights, tried, (127, 7))))]
    settled = brute_force(rows, weights, ((0.0, 0.0), best), (127, levels))
    scales = set()

    def settle(x: torch.Tensor, weight: torch.Tensor, index: int, scale: torch.Tensor) -> torch.Tensor:
        np.testing.assert_allclose(x.numpy(), rows / scale.numpy(), rtol=1e-12)
        np.testing.assert_allclose(weight.numpy(), weights[index] * scale.numpy(), rtol=1e-12)
        scales.add(tuple(scale.tolist()))
        return torch_rounded(127)(x) @ torch_rounded(levels)(weight).T

    found = searched(rows, weights, tried, settled=settle)
    assert len(scales) == 2
    assert found.exponents == (best if settled[1] < settled[0] else (0.0, 0.0))
    assert found.error == pytest.approx(min(settled), rel=1e-9)
    assert found.plain_error == pytest.approx(settled[0], rel=1e-9)


def test_smoothing_that_the_final_rounding_does_not_need_is_left_out() -> None:
    rows, weights = problem(0)
    found = searched(
        rows,
        weights,
        candidates("smoothquant"),
        settled=lambda x, weight, index, scale: (
            x @ weight.T * (float(scale.min()) == float(scale.max()) == 1.0)
        ),
    )
    assert found.exponents == (0.0, 0.0)
    assert found.factors.tolist() == [1.0] * rows.shape[1]


def test_no_smoothing_wins_where_it_is_best_and_is_always_tried() -> None:
    # Weights exact in 4 bits and inputs in 8: any factor but one can only add an error.
    generator = np.random.default_rng(0)
    rows = np.clip(generator.integers(-127, 128, size=(50, 8)), -127, 127).astype(float)
    rows[:, 0] = 127.0
    weight = generator.integers(-7, 8, size=(6, 8)).astype(float)
    weight[:, 1] = 7.0
    found = searched(rows, [weight], ((0.5, 0.5),))
    assert found.exponents == (0.0, 0.0)
    assert found.factors.tolist() == [1.0] * 8
    assert found.error == found.plain_error < 1e-18
