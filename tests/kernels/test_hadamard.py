"""Hadamard matrices against their definition, and the rotations made of them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import hadamard as sylvester

from ditpress.errors import InputError
from ditpress.kernels.hadamard import hadamard_factors, hadamard_matrix
from ditpress.kernels.transforms import Hadamard, rotate_weight

SIDES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 56, 60, 64, 72, 76, 84, 128, 256)


@pytest.mark.parametrize("side", SIDES)
def test_rows_are_orthogonal_signs(side: int) -> None:
    matrix = hadamard_matrix(side)
    assert matrix.shape == (side, side)
    assert bool((matrix.abs() == 1).all())
    wide = matrix.long()
    assert torch.equal(wide @ wide.T, side * torch.eye(side, dtype=torch.int64))


@pytest.mark.parametrize("side", [2, 8, 64])
def test_powers_of_two_are_those_of_sylvester(side: int) -> None:
    assert torch.equal(hadamard_matrix(side).long(), torch.tensor(sylvester(side)))


@pytest.mark.parametrize("side", [0, -4, 3, 6, 18, 52])  # 52 exists, but by none of these constructions
def test_other_sides_are_refused(side: int) -> None:
    with pytest.raises(InputError, match=f"no Hadamard matrix of side {side}"):
        hadamard_matrix(side)


@pytest.mark.parametrize(
    ("features", "factors"),
    [
        (1152, (36, 32)),
        (4608, (36, 128)),
        (72, (36, 2)),
        (192, (12, 16)),
        (768, (12, 64)),
        (3072, (12, 256)),
        (12288, (12, 32, 32)),
        (16, (16,)),
        (1024, (32, 32)),
        (2432, (76, 32)),
        (1, (1,)),
    ],
)
def test_factors_of_the_widths_of_dits(features: int, factors: tuple[int, ...]) -> None:
    assert hadamard_factors(features) == factors


@pytest.mark.parametrize("features", [0, 3, 18, 54, 105])
def test_widths_without_factors_name_the_remedy(features: int) -> None:
    with pytest.raises(InputError, match=rf"{features} features: .* blocks of a power of two"):
        hadamard_factors(features)


def rotation(hadamard: Hadamard) -> torch.Tensor:
    """R of the docstring, float64 [K, K], by Kronecker products of the matrices."""
    block = torch.ones(1, 1, dtype=torch.float64)
    for side in hadamard.factors:
        block = torch.kron(block, hadamard_matrix(side).double())
    count = len(hadamard.signs) // len(block)
    return torch.diag(hadamard.signs.double()) @ torch.block_diag(*[block] * count) / math.sqrt(len(block))


@pytest.mark.parametrize(
    ("features", "factors"),
    [
        (192, (12, 16)),
        (768, (12, 64)),
        (1152, (36, 32)),
        (72, (36, 2)),
        (96, (12, 4, 2)),
        (1152, 128),
        (72, 8),
        (96, (12, 4)),
    ],
)
def test_rotation_is_the_kronecker_product_and_orthonormal(
    features: int, factors: tuple[int, ...] | int
) -> None:
    generator = torch.Generator().manual_seed(features)
    hadamard = Hadamard.random(factors, features, generator)
    assert 0 < int((hadamard.signs == 1).sum()) < features
    r = rotation(hadamard)
    torch.testing.assert_close(r @ r.T, torch.eye(features, dtype=torch.float64), rtol=0, atol=1e-12)
    x = torch.randn(2, 5, features, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(hadamard(x), x @ r, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hadamard.inverse(hadamard(x)), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hadamard(x.float()), (x @ r).float(), rtol=1e-5, atol=1e-5)
    assert hadamard(x.half()).dtype == torch.float16
    weight = torch.randn(3, features, generator=generator)
    torch.testing.assert_close(rotate_weight(weight, hadamard), weight.double() @ r, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [3072, 4608])
def test_wide_rotations_keep_lengths_and_angles(features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hadamard = Hadamard.random(hadamard_factors(features), features, generator)
    x = torch.randn(8, features, generator=generator, dtype=torch.float64)
    y = hadamard(x)
    torch.testing.assert_close(y @ y.T, x @ x.T, rtol=1e-11, atol=1e-9)
    one_hot = torch.zeros(1, features, dtype=torch.float64)
    one_hot[0, 7] = 1
    torch.testing.assert_close(
        hadamard(one_hot).abs(), torch.full_like(one_hot, features**-0.5), rtol=1e-12, atol=0
    )


def test_a_block_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="side 64 does not divide the 72 features"):
        Hadamard(64, torch.ones(72, dtype=torch.int8))
    with pytest.raises(InputError, match=r"signs are torch\.float32 \[72\], expected torch\.int8"):
        Hadamard((36, 2), torch.ones(72))


def test_only_the_signs_are_kept_and_keep_their_type() -> None:
    hadamard = Hadamard((36, 2), torch.ones(72, dtype=torch.int8))
    assert set(hadamard.state_dict()) == {"signs"}
    assert {buffer.dtype for buffer in hadamard.half().buffers()} == {torch.int8}
