"""Modules around a linear: a branch beside it, a transform before it, a norm after it.

They nest, the main linear innermost, each as the child ``linear`` of the one around it. ``kind`` is a
wrapper's name in config.json; ``describe`` and :func:`wrap_empty` write and read its entry there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.kernels.buffers import FixedBuffers
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.transforms import TRANSFORMS, Subspace, Transform

Linear = nn.Linear | QuantizedLinear


class Wrapper(FixedBuffers):
    """A module that computes what a linear did, around that linear, its child ``linear``.

    ``empty(linear, device, **description)`` of each class makes one whose own numbers are still to be loaded.
    """

    kind: ClassVar[str]
    linear: nn.Module

    @property
    def in_features(self) -> int:
        return main_linear(self).in_features

    @property
    def out_features(self) -> int:
        return main_linear(self).out_features

    def describe(self) -> dict[str, Any]:
        """What :func:`wrap_empty` needs to make it again, as plain data."""
        raise NotImplementedError

    def input_weight(self, weight: Tensor) -> Tensor:
        """The weight ``[N, K]`` by which this multiplies its input, given that of ``linear``."""
        raise NotImplementedError


class LowRankLinear(Wrapper):
    """``y = linear(x) + up(down(x))``.

    Children: linear; down ``[K -> rank]`` and up ``[rank -> N]``, ``nn.Linear`` without bias or
    ``QuantizedLinear``. Float ones count and are stored in 16 bits where float16 holds them exactly.
    """

    kind = "low-rank"

    def __init__(self, linear: nn.Module, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.linear, self.down, self.up = linear, down, up
        main, first, last = main_linear(linear), main_linear(down), main_linear(up)
        shapes = (first.in_features, first.out_features, last.out_features)
        if shapes != (main.in_features, last.in_features, main.out_features):
            raise InputError(
                f"low-rank branch {first.in_features} -> {first.out_features}, {last.in_features} -> "
                f"{last.out_features} does not fit its linear {main.in_features} -> {main.out_features}"
            )

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "rank": main_linear(self.down).out_features}

    @classmethod
    def empty(
        cls, linear: nn.Module, device: torch.device | str | None = None, *, rank: int
    ) -> LowRankLinear:
        main = main_linear(linear)
        down = nn.Linear(main.in_features, rank, bias=False, device=device).requires_grad_(False)
        up = nn.Linear(rank, main.out_features, bias=False, device=device).requires_grad_(False)
        return cls(linear, down, up)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))

    def input_weight(self, weight: Tensor) -> Tensor:
        return weight + input_weight(self.up) @ input_weight(self.down)


class TransformedLinear(Wrapper):
    """``y = linear(transform(x))``. Children: transform, which several wrappers may share, and linear."""

    kind = "transformed"

    def __init__(self, transform: Transform, linear: nn.Module) -> None:
        super().__init__()
        self.transform, self.linear = transform, linear

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "transform": {"kind": self.transform.kind} | self.transform.describe()}

    @classmethod
    def empty(
        cls, linear: nn.Module, device: torch.device | str | None = None, *, transform: Mapping[str, Any]
    ) -> TransformedLinear:
        settings = dict(transform)
        made = _known(TRANSFORMS, settings.pop("kind", None), "transform")
        return cls(made.empty(main_linear(linear).in_features, device, **settings), linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.transform(x))

    def input_weight(self, weight: Tensor) -> Tensor:
        return self.transform.input_weight(weight)


class SubspaceLinear(Wrapper):
    """``y = linear(x - z D) + up(z)``, ``z = x Dᵀ``: the linear reads what a few directions D leave of x.

    Where ``up`` is the linear's weight times Dᵀ that is ``linear(x)`` again, whatever D. Activations are
    rounded after the split: a few directions that hold most of x no longer decide the step of the rest.

    Children: transform, the split, which several wrappers may share; linear; up ``[r -> N]``, an
    ``nn.Linear`` without bias or a ``QuantizedLinear``.
    """

    kind = "subspace"

    def __init__(self, transform: Subspace, linear: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.transform, self.linear, self.up = transform, linear, up
        main, last = main_linear(linear), main_linear(up)
        rank, columns = transform.directions.shape
        if (columns, last.in_features, last.out_features) != (main.in_features, rank, main.out_features):
            raise InputError(
                f"subspace of {rank} directions of {columns} features with a branch {last.in_features} -> "
                f"{last.out_features} does not fit its linear {main.in_features} -> {main.out_features}"
            )

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.transform.describe()}

    @classmethod
    def empty(
        cls, linear: nn.Module, device: torch.device | str | None = None, *, rank: int
    ) -> SubspaceLinear:
        main = main_linear(linear)
        up = nn.Linear(rank, main.out_features, bias=False, device=device).requires_grad_(False)
        return cls(Subspace.empty(main.in_features, device, rank=rank), linear, up)

    def forward(self, x: Tensor) -> Tensor:
        rest, coordinates = self.transform.split(x)
        return self.linear(rest) + self.up(coordinates)

    def input_weight(self, weight: Tensor) -> Tensor:
        return self.transform.input_weight(weight) + input_weight(self.up) @ self.transform.matrix()


class NormedLinear(Wrapper):
    """``y / sqrt(mean(y²) + eps) * gain`` of the linear's outputs y, an RMSNorm with a gain.

    The fix of TerDiT (Lu et al. 2024, section 3.3) for adaLN linears with ternary weights.

    Buffer: gain float32 ``[N]``.
    """

    kind = "normed"
    gain: Tensor

    def __init__(self, linear: nn.Module, gain: Tensor, eps: float = 1e-6) -> None:
        super().__init__()
        rows = main_linear(linear).out_features
        if gain.dtype != torch.float32 or gain.shape != (rows,):
            raise InputError(f"gain is {gain.dtype} {list(gain.shape)}, expected torch.float32 [{rows}]")
        self.linear, self.eps = linear, eps
        self.register_buffer("gain", gain)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "eps": self.eps}

    @classmethod
    def empty(
        cls, linear: nn.Module, device: torch.device | str | None = None, *, eps: float
    ) -> NormedLinear:
        return cls(linear, torch.ones(main_linear(linear).out_features, device=device), eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        root = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * root * self.gain).to(y.dtype)

    def input_weight(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


WRAPPERS: dict[str, type[Wrapper]] = {
    cls.kind: cls for cls in (LowRankLinear, TransformedLinear, SubspaceLinear, NormedLinear)
}


def wrap_empty(
    linear: nn.Module, description: Mapping[str, Any], device: torch.device | str | None = None
) -> Wrapper:
    """A wrapper around ``linear`` as ``Wrapper.describe`` told it, with numbers still to be loaded.

    Raises:
        InputError: an unknown kind, or settings that do not belong to it.
    """
    settings = dict(description)
    cls = _known(WRAPPERS, settings.pop("kind", None), "wrapper")
    try:
        return cls.empty(linear, device, **settings)
    except TypeError as error:
        raise InputError(f"wrapper {cls.kind}: its settings do not belong to it ({error})") from error


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """``module``, its child ``linear`` where it is a wrapper, and so on: the main linear comes last."""
    yield module
    while isinstance(module, Wrapper):
        module = module.linear
        yield module


def main_linear(module: nn.Module) -> Linear:
    """The linear inside all wrappers. Raises InputError where there is none."""
    *_, inner = layers_of(module)
    if not isinstance(inner, Linear):
        raise InputError(f"{type(inner).__name__}: expected a linear, or a wrapper around one")
    return inner


def branch_modules(root: nn.Module) -> set[nn.Module]:
    """All modules below ``root`` that belong to branches of wrappers, which the plain model has not."""
    branches: list[nn.Module] = []
    for module in root.modules():
        if isinstance(module, LowRankLinear):
            branches += [module.down, module.up]
        elif isinstance(module, SubspaceLinear):
            branches.append(module.up)
    return {part for branch in branches for part in branch.modules()}


def outer_names(root: nn.Module) -> dict[str, str]:
    """For every module in a wrapper below ``root``, and the wrapper itself: the name of the outermost one."""
    found: dict[str, str] = {}
    for name, module in root.named_modules():
        parent = name.rpartition(".")[0]
        if parent in found:
            found[name] = found[parent]
        elif isinstance(module, Wrapper):
            found[name] = name
    return found


def input_weight(module: nn.Module) -> Tensor:
    """The weight ``[N, K]`` by which a linear with all its wrappers multiplies its input, before any norm."""
    *wrappers, _ = layers_of(module)
    linear = main_linear(module)
    weight = linear.dequantize() if isinstance(linear, QuantizedLinear) else linear.weight.detach()
    for wrapper in reversed(wrappers):
        assert isinstance(wrapper, Wrapper)
        weight = wrapper.input_weight(weight)
    return weight


def _known(table: Mapping[str, Any], kind: object, what: str) -> Any:
    if kind not in table:
        raise InputError(f"unknown {what} {kind!r}; expected one of {', '.join(table)}")
    return table[str(kind)]
