"""The stage ``quantize``: linears become low-bit linears, by round to nearest."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.compress.quantize.grid import check_format
from ditpress.compress.quantize.rtn import round_to_nearest, search_scale, split_groups
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.stage import LayerFormat, Stage, register_stage
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import QuantizedLinear, scale_dtype
from ditpress.kernels.packing import pack
from ditpress.load.anatomy import Role
from ditpress.progress import track

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser


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

    def layer_formats(self, denoiser: Denoiser) -> dict[str, LayerFormat]:
        """Format of every linear that this stage will replace, by full name, in the order of the model.

        Raises:
            InputError: a ``skip`` pattern that matches no layer, a group that does not divide K, a format
            that round to nearest cannot take, or no layer left.
        """
        transformer = denoiser.transformer
        roles = denoiser.anatomy.linears(transformer)
        for pattern in self.skip:
            if not any(fnmatchcase(name, pattern) for name in roles):
                raise InputError(f'quantize.skip: "{pattern}" matches no layer; {_closest(pattern, roles)}')
        formats: dict[str, LayerFormat] = {}
        for name, role in roles.items():
            module = transformer.get_submodule(name)
            skipped = role in self.keep or any(fnmatchcase(name, pattern) for pattern in self.skip)
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

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        transformer = denoiser.transformer
        formats = self.layer_formats(denoiser)
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


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is a child below ``root``, also where several parents share it."""
    new.train(old.training)
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would hide a second name
            if child is old:
                setattr(parent, name, new)


def _closest(pattern: str, roles: Mapping[str, Role]) -> str:
    """The names most like a pattern that matched nothing: there may be hundreds of layers."""
    return f"closest: {', '.join(difflib.get_close_matches(pattern, roles, n=3, cutoff=0.0))}"
