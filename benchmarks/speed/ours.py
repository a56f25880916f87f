"""What ditpress makes of a workload: linears with random codes, exported.

Speed does not depend on what the codes are, and for some formats no quantizer of this package makes them.
Which layers become low-bit, and which stay, is what the built-in recipes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ditpress.export.onnx import export_transformer
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.random_weights import random_linear
from ditpress.load.anatomy import Role, anatomy_of
from ditpress.load.modules import replace_module
from speed.contestants import RULES
from speed.models import OneLinear

_KEPT = (Role.EMBEDDER, Role.FINAL, Role.OTHER)


@dataclass(frozen=True)
class LowBit:
    """Storage of the linears.

    Attributes:
        format: of the weights.
        group: weights a scale; None: one scale a channel.
        fold_scales: whether group scales are folded into 8-bit weights when the kernel packs them.
        modulation: of the weight-only modulation linears; None: as the others.
    """

    format: str
    group: int | None = None
    fold_scales: bool = False
    modulation: LowBit | None = None


_INT4 = LowBit("int4", 64)
FORMATS: dict[str, LowBit] = {
    "w4a8": replace(_INT4, fold_scales=True, modulation=_INT4),
    "w4a8-exact": _INT4,
    "w8a8": LowBit("int8"),
    "fp4": LowBit("fp4-e2m1", 64, fold_scales=True, modulation=_INT4),
    "ternary": LowBit("ternary"),
    "vq": LowBit("vq-256x4"),
}
"""By the name of the contestant; as the built-in recipes have them."""


def compress(model: nn.Module, name: str) -> nn.Module:
    """Replace the linears of ``model`` by low-bit ones in ``FORMATS[name]``, in place."""
    layer = FORMATS[name]
    if isinstance(model, OneLinear):
        replace_module(model, model.linear, random_code_linear(model.linear, layer, "int8", seed=0))
        return model
    for seed, (path, role) in enumerate(anatomy_of(model).linears(model).items()):
        linear = model.get_submodule(path)
        if role in _KEPT or not isinstance(linear, nn.Linear):
            continue
        modulation = role is Role.MODULATION  # few rows and sensitive: weight-only
        storage = layer.modulation or layer if modulation else layer
        low_bit = random_code_linear(linear, storage, "none" if modulation else "int8", seed)
        replace_module(model, linear, low_bit)
    return model


def random_code_linear(linear: nn.Linear, layer: LowBit, activation: Any, seed: int) -> QuantizedLinear:
    """A low-bit linear of the shape of ``linear`` with random codes, its weights of variance 1 / K.

    Every layer needs a seed of its own: equal weights would be stored, and equal layers computed, only once.
    """
    out_features, in_features = linear.weight.shape
    return random_linear(
        in_features,
        out_features,
        layer.format,
        layer.group or in_features,
        activation,
        bias=linear.bias is not None,
        fold_scales=layer.fold_scales,
        seed=seed,
    )


def fused_rules(artifact: str) -> tuple[str, ...] | None:
    """The rewrite rules that an artifact "ours-w4a8-without-RULE" is exported with; None: the default."""
    _, found, rule = artifact.partition("-without-")
    if not found:
        return None
    return () if rule == "all" else tuple(name for name in RULES if name != rule)


def export(
    model: nn.Module, folder: Path, call: Mapping[str, Any], fuse: Sequence[str] | None = None
) -> Path:
    """Write ``folder/model.onnx``.

    Args:
        fuse: rewrite rules to apply; None leaves the export's default.
    """
    options: dict[str, Any] = {} if fuse is None else {"fuse": fuse}
    path, _ = export_transformer(model, folder, [dict(call)], **options)
    return path
