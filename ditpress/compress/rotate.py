"""Hadamard rotations of the inputs of linears: outliers spread over all channels, the function stays.

``y = W x = (W R) (Rᵀ x)`` for an orthonormal R; HQ-DiT (Liu et al. 2024) rotates what the linears of a DiT
read, as QuaRot (Ashkboos et al., NeurIPS 2024) does for language models, so that 4-bit activations lose
less. The adaLN modulation stands between the norm and the linear, so that R cannot be moved into the residual
stream: inputs are rotated at run time. Values of an attention pass it head by head, linearly: there the
rotation is folded into the V rows and the output's columns and costs nothing.

R is a normalized Hadamard matrix with random signs: the Kronecker product of a small known one and powers of
two (1152 = 36 x 32, 4608 = 36 x 128 and 72 = 36 x 2 are no powers of two), or a power of two repeated along
the diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from pydantic import Field, StrictBool
from torch import Tensor, nn

from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError
from ditpress.kernels.hadamard import hadamard_factors
from ditpress.kernels.transforms import Hadamard, rotate_weight
from ditpress.kernels.wrap import TransformedLinear
from ditpress.load.anatomy import Anatomy, Role, ValueGroup
from ditpress.load.modules import replace_module

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser


@register_stage
class Rotate(Stage):
    """Rotate what the linears of the blocks read."""

    kind: Literal["rotate"] = "rotate"
    # Folds of smoothing factors need the channels as they were; rotations need float weights.
    not_after: ClassVar[frozenset[str]] = frozenset({"rotate", "quantize", "ternary", "vq"})
    not_before: ClassVar[frozenset[str]] = frozenset({"smooth"})

    roles: tuple[Role, ...] = Field(
        default=(Role.QKV, Role.ATTENTION_OUT, Role.MLP_IN, Role.MLP_OUT),
        description="linears whose inputs are rotated",
    )
    matrix: Literal["kronecker", "block"] = Field(
        default="kronecker",
        description="kronecker: all channels together; block: each `block` channels apart, which is cheaper",
    )
    block: int = Field(
        default=64, ge=2, description="channels of a block, a power of two that divides every width"
    )
    heads: StrictBool = Field(
        default=True,
        description="rotate the inputs of attention_out inside each head, at no cost, where the values can "
        "take it; false: at run time, all channels together, as the others",
    )
    seed: int = Field(default=0, ge=0, description="of the random signs")

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        _, online = self._places(denoiser.anatomy, skeleton)
        shared: dict[tuple[str, int], Hadamard] = {}
        for name, key in online.items():
            linear = cast(nn.Linear, skeleton.get_submodule(name))
            if key not in shared:
                shared[key] = Hadamard.empty(key[1], "meta", factors=self._factors(key[1], name))
            replace_module(skeleton, linear, TransformedLinear(shared[key], linear))

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        transformer = denoiser.transformer
        groups, online = self._places(denoiser.anatomy, transformer)
        for name in (*online, *(name for group in groups for name in (*group.sources, *group.linears))):
            if not bool(torch.isfinite(_linear(transformer, name).weight).all()):
                raise InputError(
                    f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
                )
        generator = torch.Generator().manual_seed(self.seed)
        shared: dict[tuple[str, int], Hadamard] = {}
        with torch.no_grad():
            for group in groups:
                rotate_values(transformer, group, _head_hadamard(transformer, group, generator))
            for name, key in online.items():
                linear = _linear(transformer, name)
                if key not in shared:
                    made = Hadamard.random(self._factors(key[1], name), key[1], generator)
                    shared[key] = cast(Hadamard, made.to(linear.weight.device))
                linear.weight.copy_(rotate_weight(linear.weight, shared[key]))
                replace_module(transformer, linear, TransformedLinear(shared[key], linear))

    def _places(
        self, anatomy: Anatomy, transformer: nn.Module
    ) -> tuple[list[ValueGroup], dict[str, tuple[str, int]]]:
        """Groups rotated by their values; linears rotated at run time, with their block and width.

        Linears of a block with equal widths share one rotation, and so read one tensor where their inputs
        are one (q, k and v).

        Raises:
            InputError: a width that the matrix does not fit, or nothing to rotate.
        """
        groups = []
        if self.heads and Role.ATTENTION_OUT in self.roles:
            groups = [group for group in anatomy.value_groups(transformer) if _is_float(transformer, group)]
        for group in groups:
            _head_factors(transformer, group)
        done = {name for group in groups for name in group.linears}
        online = {}
        for name, role in anatomy.linears(transformer).items():
            linear = transformer.get_submodule(name)
            if role in self.roles and name not in done and isinstance(linear, nn.Linear):
                block = ".".join(name.split(".")[:2])  # "transformer_blocks.3"
                online[name] = (block, linear.in_features)
                self._factors(linear.in_features, name)
        if not groups and not online:
            raise InputError(
                "rotate: no linear of the model has a role in rotate.roles; name others, or leave it out"
            )
        return groups, online

    def _factors(self, features: int, name: str) -> tuple[int, ...]:
        """Sides of the Hadamard matrices for an input of ``features`` channels."""
        if self.matrix == "kronecker":
            try:
                return hadamard_factors(features)
            except InputError as error:
                raise InputError(f"{name}: {error}; set rotate.matrix: block") from error
        if self.block & (self.block - 1) or features % self.block:
            raise InputError(
                f"{name}: a block of {self.block} does not rotate {features} channels; set rotate.block to a "
                f"power of two up to {features & -features}"
            )
        return (self.block,)


def rotate_values(transformer: nn.Module, group: ValueGroup, rotation: Hadamard) -> None:
    """Rotate V rows (weight and bias) of the group's sources and columns of its linears, in place.

    ``rotation`` works inside heads: softmax weights mix tokens, not channels, so that ``A (V R) = (A V) R``.
    """
    for name in group.sources:
        source = _linear(transformer, name)
        source.weight.copy_(rotate_weight(source.weight.t(), rotation).t())
        if source.bias is not None:
            source.bias.copy_(rotation(source.bias.double()))
    for name in group.linears:
        linear = _linear(transformer, name)
        linear.weight.copy_(rotate_weight(linear.weight, rotation))


def _head_hadamard(transformer: nn.Module, group: ValueGroup, generator: torch.Generator) -> Hadamard:
    linear = _linear(transformer, group.linears[0])
    rotation = Hadamard.random(_head_factors(transformer, group), linear.in_features, generator)
    return cast(Hadamard, rotation.to(linear.weight.device))


def _head_factors(transformer: nn.Module, group: ValueGroup) -> tuple[int, ...]:
    channels = _linear(transformer, group.linears[0]).in_features // group.heads
    try:
        return hadamard_factors(channels)
    except InputError as error:
        raise InputError(f"{group.linears[0]}: heads of {error}; set rotate.heads: false") from error


def _is_float(transformer: nn.Module, group: ValueGroup) -> bool:
    names = (*group.sources, *group.linears)
    return all(isinstance(transformer.get_submodule(name), nn.Linear) for name in names)


def _linear(transformer: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, transformer.get_submodule(name))
