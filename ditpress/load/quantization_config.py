"""What config.json says of a compressed transformer: its ``quantization_config``.

It holds::

    "quantization_config": {"quant_method": "ditpress", "schema": 3,
        "pruned": {name: {"heads": 3, "head_dim": 32}, name: {"hidden": 384}, name: {"residual": 320}, ...},
        "wrappers": {name: {"kind": "low-rank", "rank": 32}, ...},
        "layers": {name: {"format": "int4", "group_size": 64, "activation": "int8"}, ...},
        "shared": [[name, name, ...], ...]}

``pruned`` are the attentions, MLPs and residual streams that are narrower than the rest of config.json says
(:mod:`ditpress.load.widths`); without any it is left out, and the schema is 2. ``wrappers`` are the linears
with something around them (:mod:`ditpress.kernels.wrap`), the outermost under the name of the linear, one
inside another under that name and ``.linear``. ``layers`` are the linears stored as ``QuantizedLinear``,
those inside wrappers too; ``"fold_scales": true`` stands only where group scales are folded. The codebook of
a layer is stored with its codes, whatever the format. Each list of ``shared`` names submodules that are one
object, stored under the first name only. Schema 1 had no wrappers, and is read still.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import nn

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import Wrapper
from ditpress.load.widths import cut_sizes

SCHEMA = 3
_SCHEMA_UNPRUNED = 2


class Method(StrEnum):
    """Diffusers reads ``quant_method.value``."""

    DITPRESS = "ditpress"


class DitpressConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a transformer; see the module's text for its fields."""

    def __init__(
        self,
        layers: dict[str, dict[str, Any]] | None = None,
        shared: list[list[str]] | None = None,
        schema: int = SCHEMA,
        quant_method: str = Method.DITPRESS,
        wrappers: dict[str, dict[str, Any]] | None = None,
        pruned: dict[str, dict[str, int]] | None = None,
    ) -> None:
        if schema not in range(1, SCHEMA + 1):
            raise InputError(
                f"quantization_config of schema {schema}: expected at most {SCHEMA}; update ditpress"
            )
        self.quant_method = Method(quant_method)
        self.schema = SCHEMA if pruned else _SCHEMA_UNPRUNED
        self.pruned = pruned or {}  # checked where it is applied, against the model
        self.wrappers = {name: dict(wrapper) for name, wrapper in (wrappers or {}).items()}
        self.layers = {name: dict(layer) for name, layer in (layers or {}).items()}
        self.shared = [list(names) for names in shared or []]

    @classmethod
    def of(cls, transformer: nn.Module) -> DitpressConfig:
        """The configuration that describes ``transformer`` as it is now."""
        first: dict[int, str] = {}
        shared: dict[str, list[str]] = {}
        layers, wrappers = {}, {}
        for name, module in transformer.named_modules(remove_duplicate=False):
            if id(module) in first:
                original = first[id(module)]
                # Parts of a shared module come after it, and are shared because it is.
                if not any(inside(name, other) for names in shared.values() for other in names[1:]):
                    shared.setdefault(original, [original]).append(name)
                continue
            first[id(module)] = name
            if isinstance(module, QuantizedLinear):
                layer = {
                    "format": module.format,
                    "group_size": module.group_size,
                    "activation": module.activation,
                }
                layers[name] = layer | ({"fold_scales": True} if module.fold_scales else {})
            elif isinstance(module, Wrapper):
                wrappers[name] = module.describe()
        return cls(layers, list(shared.values()), wrappers=wrappers, pruned=cut_sizes(transformer))

    @property
    def changed(self) -> bool:
        """Whether the model is another than the rest of its config says."""
        return bool(self.layers or self.wrappers or self.pruned)

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": self.quant_method.value,
            "schema": self.schema,
            **({"pruned": self.pruned} if self.pruned else {}),
            "wrappers": self.wrappers,
            "layers": self.layers,
            "shared": self.shared,
        }

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


def inside(name: str, module: str) -> bool:
    """Whether ``name`` is ``module`` or a part of it."""
    return name == module or name.startswith(module + ".")
