"""Changes of a linear's input that its weight makes up for: scaling per channel, rotation, a shift, a split.

Each is a module with named buffers, made of standard operators, which works on ``[..., K]`` in any float
type. ``kind`` is its name in config.json, ``describe`` says what its buffers do not, and ``empty(in_features,
device, **description)`` of its class makes one whose buffers are still to be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.buffers import FixedBuffers
from ditpress.kernels.hadamard import hadamard_matrix


class Transform(FixedBuffers):
    """What stands before a linear in a :class:`ditpress.kernels.wrap.TransformedLinear`."""

    kind: ClassVar[str]

    def describe(self) -> dict[str, Any]:
        """The arguments of ``empty`` beyond the number of features, as plain data."""
        return {}

    def input_weight(self, weight: Tensor) -> Tensor:
        """The weight ``[N, K]`` by which ``linear(transform(x))`` multiplies x, given that of ``linear``."""
        raise NotImplementedError


class ChannelScale(Transform):
    """``x * factors``. Buffer: factors float32 ``[K]``. The linear's columns are divided by them."""

    kind = "channel-scale"
    factors: Tensor

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        if factors.dtype != torch.float32 or factors.dim() != 1:
            raise InputError(
                f"channel factors are {factors.dtype} {list(factors.shape)}, expected float32 [K]"
            )
        self.register_buffer("factors", factors)

    @classmethod
    def empty(cls, in_features: int, device: torch.device | str | None = None) -> ChannelScale:
        return cls(torch.ones(in_features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factors).to(x.dtype)

    def input_weight(self, weight: Tensor) -> Tensor:
        return weight * self.factors


class Shift(Transform):
    """``x + value``. Buffer: value, one float32 number. The linear's bias is less by ``value * W 1``."""

    kind = "shift"
    value: Tensor

    def __init__(self, value: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("value", torch.as_tensor(value, dtype=torch.float32))

    @classmethod
    def empty(cls, in_features: int, device: torch.device | str | None = None) -> Shift:
        return cls(torch.zeros((), device=device))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.value).to(x.dtype)

    def input_weight(self, weight: Tensor) -> Tensor:
        return weight


class Hadamard(Transform):
    """The orthonormal rotation ``x R``, ``R = diag(signs) (H_1 ⊗ H_2 ⊗ ...) / sqrt(n)``.

    With n, the product of the factors, less than K, the same matrix stands K / n times on the diagonal.

    Buffers: signs int8 ``[K]``, all ±1, kept in checkpoints; one Hadamard matrix int8 per factor, small, made
    anew from its side and not kept.

    Args:
        factors: sides of the Hadamard matrices, as of :func:`ditpress.kernels.hadamard.hadamard_factors`, or
            one number: the block, a power of two. Their product must divide K.
        signs: int8 ``[K]``.
    """

    kind = "hadamard"
    signs: Tensor

    def __init__(self, factors: Sequence[int] | int, signs: Tensor) -> None:
        super().__init__()
        self.factors = (factors,) if isinstance(factors, int) else tuple(factors)
        self.block = math.prod(self.factors)
        if signs.dtype != torch.int8 or signs.dim() != 1:
            raise InputError(f"signs are {signs.dtype} {list(signs.shape)}, expected torch.int8 [K]")
        if self.block < 1 or len(signs) % self.block:
            raise InputError(
                f"Hadamard matrix of side {self.block} does not divide the {len(signs)} features; "
                "take a block that does"
            )
        self.register_buffer("signs", signs)
        for index, side in enumerate(self.factors):
            matrix = hadamard_matrix(side).clone().to(signs.device)
            self.register_buffer(f"matrix{index}", matrix, persistent=False)

    @classmethod
    def random(cls, factors: Sequence[int] | int, in_features: int, generator: torch.Generator) -> Hadamard:
        """With signs drawn from ``generator``."""
        signs = torch.randint(0, 2, (in_features,), generator=generator, dtype=torch.int8) * 2 - 1
        return cls(factors, signs)

    def describe(self) -> dict[str, Any]:
        return {"factors": list(self.factors)}

    @classmethod
    def empty(
        cls, in_features: int, device: torch.device | str | None = None, *, factors: Sequence[int] | int
    ) -> Hadamard:
        return cls(factors, torch.ones(in_features, dtype=torch.int8, device=device))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            return self.forward(x.float()).to(x.dtype)
        return self._multiply(x * self._signs(x.dtype), transposed=False)

    def inverse(self, y: Tensor) -> Tensor:
        """``y Rᵀ``, which undoes ``forward``."""
        return self._multiply(y, transposed=True) * self._signs(y.dtype)

    def input_weight(self, weight: Tensor) -> Tensor:
        return self.inverse(weight)

    def extra_repr(self) -> str:
        return f"factors={self.factors}, in_features={len(self.signs)}"

    def _signs(self, dtype: torch.dtype) -> Tensor:
        return self.signs.to(dtype) * self.block**-0.5

    def _multiply(self, x: Tensor, transposed: bool) -> Tensor:
        """Rows of x ``[..., K]`` times ``H_1 ⊗ H_2 ⊗ ...`` or its transpose, block by block."""
        features, inner = x.shape[-1], 1
        y = x
        for index in reversed(range(len(self.factors))):
            side = self.factors[index]
            matrix = self.get_buffer(f"matrix{index}").to(x.dtype)
            matrix = matrix.T if transposed else matrix
            if inner == 1:
                y = y.reshape(*x.shape[:-1], features // side, side) @ matrix
            else:
                y = matrix.T @ y.reshape(*x.shape[:-1], features // (side * inner), side, inner)
            inner *= side
        return y.reshape(x.shape)


class Subspace(Transform):
    """``x - z D`` with the coordinates ``z = x Dᵀ``: what is left of x beside the rows of D.

    With orthonormal rows that is the part of x at right angles to them; D rounded to 8 bits is nearly so.

    Buffers: directions int8 ``[r, K]`` and step float32 ``[r, 1]``, ``D = directions * step``.
    """

    kind = "subspace"
    directions: Tensor
    step: Tensor

    def __init__(self, directions: Tensor, step: Tensor) -> None:
        super().__init__()
        rank = directions.shape[0]
        if directions.dtype != torch.int8 or step.dtype != torch.float32 or step.shape != (rank, 1):
            raise InputError(
                f"directions are {directions.dtype} {list(directions.shape)} and steps {step.dtype} "
                f"{list(step.shape)}, expected torch.int8 [r, K] and torch.float32 [r, 1]"
            )
        self.register_buffer("directions", directions)
        self.register_buffer("step", step)

    @classmethod
    def rounded(cls, directions: Tensor) -> Subspace:
        """With D the float rows ``directions`` [r, K], none of them zero, each rounded to 8 bits."""
        step = directions.double().abs().amax(dim=1, keepdim=True) / 127
        return cls((directions / step).round().to(torch.int8), step.float())

    def describe(self) -> dict[str, Any]:
        return {"rank": len(self.directions)}

    @classmethod
    def empty(cls, in_features: int, device: torch.device | str | None = None, *, rank: int) -> Subspace:
        directions = torch.zeros((rank, in_features), dtype=torch.int8, device=device)
        return cls(directions, torch.zeros((rank, 1), device=device))

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """D, ``[r, K]``."""
        return self.directions.to(dtype) * self.step.to(dtype)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(x - z D, z)``, in the dtype of x ``[..., K]``."""
        if x.dtype in (torch.float16, torch.bfloat16):
            rest, coordinates = self.split(x.float())
            return rest.to(x.dtype), coordinates.to(x.dtype)
        matrix = self.matrix(x.dtype)
        coordinates = x @ matrix.T
        return x - coordinates @ matrix, coordinates

    def forward(self, x: Tensor) -> Tensor:
        return self.split(x)[0]

    def input_weight(self, weight: Tensor) -> Tensor:
        matrix = self.matrix(weight.dtype)
        return weight - (weight @ matrix.T) @ matrix

    def extra_repr(self) -> str:
        return f"rank={len(self.directions)}, in_features={self.directions.shape[1]}"


TRANSFORMS: dict[str, type[Transform]] = {cls.kind: cls for cls in (ChannelScale, Hadamard, Shift, Subspace)}


def rotate_weight(weight: Tensor, transform: Hadamard) -> Tensor:
    """``W R`` for a weight ``[N, K]``, computed and returned in float64: ``linear(transform(x))`` with it is
    what the linear was on x, since R Rᵀ = I."""
    return transform(weight.double())
