"""Hadamard matrices: square, entries ±1, rows orthogonal (H Hᵀ = n I)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ditpress.errors import InputError

LARGEST = 256  # side of a power of two that stays one matrix; beyond it two are cheaper


def hadamard_factors(features: int) -> tuple[int, ...]:
    """Sides of Hadamard matrices whose Kronecker product has ``features`` rows.

    The first takes the odd part of ``features`` (1152 -> 36 x 32, 4608 -> 36 x 128, 768 -> 12 x 64,
    72 -> 36 x 2); the others are powers of two up to ``LARGEST``.

    Raises:
        InputError: there is no such product; a block that divides ``features`` then serves.
    """
    power = features & -features if features > 0 else 0
    odd = features // power if power else 0
    if odd == 1:
        return _powers(power) or (1,)
    first = 4 * odd
    while odd and features % first == 0:
        if _construction(first) is not None:
            return (first, *_powers(features // first))
        first *= 2
    raise InputError(
        f"{features} features: no Hadamard matrix of that side from those we can construct; "
        "take one in blocks of a power of two that divides it"
    )


@cache
def hadamard_matrix(side: int) -> Tensor:
    """A Hadamard matrix int8 ``[side, side]``; the caller must not write to it.

    Powers of two by Sylvester's doubling, H_2n = [[H, H], [H, -H]]; else Paley's two constructions (Paley,
    "On orthogonal matrices", 1933) for a prime q: side q + 1 where q = 3 mod 4 (12, 20, 44), and 2 (q + 1)
    where q = 1 mod 4 (28, 36, 76), doubled as often as it takes.

    Raises:
        InputError: no construction for this side.
    """
    construction = _construction(side)
    if construction is None:
        raise InputError(
            f"no Hadamard matrix of side {side}: expected 1, 2, or p + 1 or 2 (p + 1) of a prime, doubled"
        )
    kind, inner = construction
    if kind == "one":
        matrix = torch.ones((1, 1), dtype=torch.int8)
    elif kind == "double":
        half = hadamard_matrix(inner)
        matrix = torch.cat([torch.cat([half, half], 1), torch.cat([half, -half], 1)])
    else:
        matrix = _paley(inner)
    product = matrix.double() @ matrix.double().T
    assert torch.equal(product, side * torch.eye(side, dtype=torch.float64)), f"H Hᵀ is not {side} I"
    return matrix


def _construction(side: int) -> tuple[str, int] | None:
    """How a matrix of ``side`` is made, and of what: a prime, or the side that is doubled."""
    if side == 1:
        return "one", 1
    if side < 1 or side % 2:
        return None
    if side % 4 == 0 and side & (side - 1):
        for prime in (side - 1, side // 2 - 1):
            if _is_prime(prime) and prime % 4 == (3 if prime == side - 1 else 1):
                return "paley", prime
    return ("double", side // 2) if _construction(side // 2) is not None else None


def _paley(prime: int) -> Tensor:
    """Paley's matrix of side q + 1 (q = 3 mod 4) or 2 (q + 1) (q = 1 mod 4), from the quadratic residues."""
    residues = {value * value % prime for value in range(1, prime)}
    character = torch.tensor([0] + [1 if value in residues else -1 for value in range(1, prime)])
    index = torch.arange(prime)
    core = torch.zeros((prime + 1, prime + 1), dtype=torch.int64)
    core[0, 1:] = 1
    core[1:, 0] = 1 if prime % 4 == 1 else -1
    core[1:, 1:] = character[(index[:, None] - index[None, :]) % prime]
    identity = torch.eye(prime + 1, dtype=torch.int64)
    if prime % 4 == 3:
        return (identity + core).to(torch.int8)
    plus, minus = torch.tensor([[1, 1], [1, -1]]), torch.tensor([[1, -1], [-1, -1]])
    return (torch.kron(core, plus) + torch.kron(identity, minus)).to(torch.int8)


def _powers(product: int) -> tuple[int, ...]:
    """A power of two as sides of at most ``LARGEST``, as equal as can be, the larger ones first."""
    if product == 1:
        return ()
    if product <= LARGEST:
        return (product,)
    bits = product.bit_length() - 1
    count = -(-bits // (LARGEST.bit_length() - 1))
    return tuple(2 ** ((bits + count - 1 - part) // count) for part in range(count))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
