"""The stage ``quantize``: linears become low-bit linears, by round to nearest."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.compress.quantize.rtn import check_format, round_to_nearest, search_scale, split_groups
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import Activation, QuantizedLinear, scale_dtype
from ditpress.kernels.packing import pack
from ditpress.load.anatomy import Anatomy, Role, plain_name
from ditpress.load.modules import replace_module
from ditpress.progress import track

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser


@dataclass(frozen=True)
class LayerFormat:
    """How one linear will be stored: format name, weights per scale along K, activation format, and whether
    group scales are folded into 8-bit weights when it runs."""

    format: str
    group_size: int
    activation: str
    fold_scales: bool = False


@register_stage
class Quantize(Stage):
    """Round every linear to a low-bit format; scales by the best clip in squared error.

    Modulation linears run once per sample, not per token, and their outputs multiply everything that
    follows: they are weight-only and keep more bits. Embedders and the last layer stay high.
    """

    kind: Literal["quantize"] = "quantize"
    not_after: ClassVar[frozenset[str]] = frozenset({"quantize"})

    weights: WeightSpec = WeightSpec(format="int4", group=64)
    activations: Literal["int8", "none"] = Field(
        default="int8", description="int8: per token, dynamic, symmetric; none: weight-only"
    )
    modulation: WeightSpec = WeightSpec(format="int8", group="channel")
    keep: tuple[Role, ...] = Field(
        default=(Role.EMBEDDER, Role.FINAL, Role.OTHER), description="roles that stay as they are"
    )
    skip: tuple[str, ...] = Field(
        default=(), description="layers that stay as they are, by name pattern (* and ?)"
    )

    def formats(self, anatomy: Anatomy, transformer: nn.Module) -> dict[str, LayerFormat]:
        """Format of every linear that this stage will replace, by full name, in the order of the model.

        Raises:
            InputError: a ``skip`` pattern that matches no layer, a group that does not divide K, a format
            that round to nearest cannot take, or no layer left.
        """
        roles = anatomy.linears(transformer)
        plain = [plain_name(name) for name in roles]
        for pattern in self.skip:
            if not any(fnmatchcase(name, pattern) for name in plain):
                raise InputError(f'quantize.skip: "{pattern}" matches no layer; {_closest(pattern, plain)}')
        formats: dict[str, LayerFormat] = {}
        for name, role in roles.items():
            module = transformer.get_submodule(name)
            skipped = role in self.keep or any(fnmatchcase(plain_name(name), p) for p in self.skip)
            if skipped or not isinstance(module, nn.Linear):
                continue
            modulation = role is Role.MODULATION
            spec = self.modulation if modulation else self.weights
            group = spec.group_size(module.in_features)
            if module.in_features % group:
                split_groups(module.weight, group, name)  # raises, with the groups that would fit
            activation = "none" if modulation else self.activations
            fold = spec.fold_scales and activation == "int8" and group < module.in_features
            check_format(get_format(spec.format))
            formats[name] = LayerFormat(spec.format, group, activation, fold)
        if not formats:
            raise InputError(
                "quantize: every layer is kept or skipped; shorten quantize.keep or quantize.skip"
            )
        return formats

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        for name, layer in self.formats(denoiser.anatomy, skeleton).items():
            linear = cast(nn.Linear, skeleton.get_submodule(name))
            empty = QuantizedLinear.empty(
                linear.in_features,
                linear.out_features,
                layer.format,
                layer.group_size,
                cast(Activation, layer.activation),
                bias=linear.bias is not None,
                device="meta",
                fold_scales=layer.fold_scales,
            )
            replace_module(skeleton, linear, empty)

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        transformer = denoiser.transformer
        formats = self.formats(denoiser.anatomy, transformer)
        for name in formats:
            linear = cast(nn.Linear, transformer.get_submodule(name))
            if not bool(torch.isfinite(linear.weight).all()):
                raise InputError(
                    f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
                )
        for name, layer in track(formats.items(), "quantizing", len(formats)):
            linear = cast(nn.Linear, transformer.get_submodule(name))
            replace_module(transformer, linear, quantize_linear(linear, layer, name))


def quantize_linear(linear: nn.Linear, layer: LayerFormat, name: str = "weight") -> QuantizedLinear:
    """``linear`` in the storage of ``layer``, by round to nearest; ``name`` is used in errors."""
    format = get_format(layer.format)
    device = linear.weight.device
    weight = split_groups(linear.weight.cpu(), layer.group_size, name)
    scale = search_scale(weight, format, scale_dtype(layer.group_size, linear.in_features), name)
    codes = round_to_nearest(weight, scale, format).reshape(linear.out_features, linear.in_features)
    bias = None if linear.bias is None else linear.bias.detach().float().clone()
    activation = cast(Any, layer.activation)
    packed = pack(codes, format.entries)
    return QuantizedLinear(
        packed.to(device),
        scale.to(device),
        format,
        linear.in_features,
        bias,
        activation,
        fold_scales=layer.fold_scales,
    )


def _closest(pattern: str, names: Sequence[str]) -> str:
    """The names most like a pattern that matched nothing: there may be hundreds of layers."""
    return f"closest: {', '.join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))}"
