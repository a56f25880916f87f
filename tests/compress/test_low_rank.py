"""The branch beside a quantized weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantize_cases import correlated, error_of, weights
from torch import Tensor

from ditpress.compress.quantize.fit import FittedWeight, fit_weight
from ditpress.compress.quantize.low_rank import best_approximation, fit_low_rank
from ditpress.compress.quantize.spec import WeightSpec

INT4, INT8 = WeightSpec(format="int4", group=16), WeightSpec(format="int8", group="channel")


def int4(weight: Tensor) -> FittedWeight:
    return fit_weight(weight, INT4)


def int8(weight: Tensor) -> FittedWeight:
    return fit_weight(weight, INT8)


def test_approximation_is_that_of_eckart_and_young() -> None:
    matrix = weights(24, 40)
    up, down = best_approximation(matrix, 5)
    singular = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    left = matrix.double().numpy() - up.double().numpy() @ down.double().numpy()
    assert (left**2).sum() == pytest.approx((singular[5:] ** 2).sum(), rel=1e-5)
    # Roots of the singular values on both sides.
    assert (up.norm(dim=0) ** 2).numpy() == pytest.approx(singular[:5], rel=1e-5)
    assert (down.norm(dim=1) ** 2).numpy() == pytest.approx(singular[:5], rel=1e-5)


def test_weighted_approximation_is_the_best_for_the_output() -> None:
    matrix, moment = weights(24, 40), correlated(40)
    factor = torch.linalg.cholesky(moment.double())
    up, down = best_approximation(matrix, 5, factor)
    singular = np.linalg.svd(matrix.double().numpy() @ factor.numpy(), compute_uv=False)
    assert error_of(matrix, up @ down, moment) == pytest.approx((singular[5:] ** 2).sum(), rel=1e-4)
    plain_up, plain_down = best_approximation(matrix, 5)
    assert error_of(matrix, up @ down, moment) < 0.8 * error_of(matrix, plain_up @ plain_down, moment)


def test_large_matrices_get_nearly_the_best() -> None:
    generator = torch.Generator().manual_seed(2)
    # Singular values that fall slowly, as those of rounding errors do.
    matrix = torch.randn(560, 600, generator=generator) + 3 * weights(560, 4) @ weights(4, 600) * 400
    up, down = best_approximation(matrix, 8)
    singular = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    left = float((matrix.double() - up.double() @ down.double()).square().sum())
    best = float((singular[8:] ** 2).sum())
    assert best <= left < 1.01 * best
    again = best_approximation(matrix, 8)
    assert torch.equal(again[0], up)
    assert torch.equal(again[1], down)


@pytest.mark.parametrize("method", ["loftq", "svdquant"])
@pytest.mark.parametrize("whiten", [True, False])
def test_the_branch_lowers_the_output_error_more_with_rank(method: str, whiten: bool) -> None:
    weight, moment = weights(48, 64), correlated(64, rank=20)
    plain = error_of(weight, int4(weight).dequantize(), moment)
    errors = []
    for rank in (2, 8, 16):
        found = fit_low_rank(
            weight, rank, int4, int8, method=method, iterations=10, second_moment=moment, whiten=whiten
        )
        assert found.up.codes.shape == (48, rank)
        assert found.down.codes.shape == (rank, 64)
        stored = found.weight.dequantize() + found.up.dequantize() @ found.down.dequantize()
        assert found.error == pytest.approx(error_of(weight, stored, moment), rel=1e-4)
        errors.append(found.error)
    assert errors[2] < errors[1] < errors[0] < plain


def test_whitening_is_better_for_the_output() -> None:
    weight, moment = weights(48, 64), correlated(64, rank=20)
    plain, whitened = (
        fit_low_rank(weight, 8, int4, int8, second_moment=moment, whiten=whiten).error
        for whiten in (False, True)
    )
    assert whitened < 0.8 * plain


def test_svdquant_stops_at_the_first_turn_that_does_not_help() -> None:
    """Against the loop written out, with the errors of all its turns."""
    weight, moment = weights(32, 48, seed=8), correlated(48)
    turns = []
    up, down = (int8(part) for part in best_approximation(weight, 4))
    for _ in range(12):
        product = up.dequantize() @ down.dequantize()
        stored = int4(weight - product).dequantize()
        turns.append(error_of(weight, stored + product, moment))
        up, down = (int8(part) for part in best_approximation(weight - stored, 4))
    stop = next(i for i in range(1, 12) if turns[i] >= turns[i - 1])
    calls = []

    def counted(w: Tensor) -> FittedWeight:
        calls.append(1)
        return int4(w)

    found = fit_low_rank(
        weight,
        4,
        counted,
        int8,
        method="svdquant",
        iterations=100,
        second_moment=moment,
        whiten=False,
    )
    assert len(calls) == stop + 1
    assert found.error == pytest.approx(turns[stop - 1], rel=1e-4)


def test_turns_without_inputs_lower_the_error_of_the_weight() -> None:
    weight = weights(48, 64)
    one, ten = (
        fit_low_rank(weight, 8, int4, int8, method="loftq", iterations=turns).error for turns in (1, 10)
    )
    assert ten < one < float((int4(weight).dequantize() - weight).double().square().sum())


def test_what_the_storage_of_the_branch_loses_is_part_of_the_error() -> None:
    weight = weights(32, 32)
    coarse = WeightSpec(format="ternary", group="channel")
    found = fit_low_rank(weight, 4, int4, lambda w: fit_weight(w, coarse), iterations=3)
    assert found.up.format.name == "ternary"
    stored = found.weight.dequantize() + found.up.dequantize() @ found.down.dequantize()
    assert found.error == pytest.approx(float((stored - weight).double().square().sum()), rel=1e-6)
