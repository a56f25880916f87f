"""The stage ``quantize``: linears become low-bit linears."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from pydantic import Field, StrictBool
from torch import Tensor, nn

from ditpress.calibrate.calls import Call
from ditpress.compress.quantize.gelu import follows_gelu
from ditpress.compress.quantize.layer import LayerPlan, empty_layer, quantize_linear
from ditpress.compress.quantize.spec import LowRankSpec, WeightSpec
from ditpress.compress.quantize.walk import walk
from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError, StageError
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import Activation
from ditpress.load.anatomy import Role, plain_name
from ditpress.load.modules import replace_module
from ditpress.progress import track

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser

# Linears that run on every token of every block: the only ones whose inputs are rounded.
INNER = frozenset({Role.QKV, Role.ATTENTION_OUT, Role.MLP_IN, Role.MLP_OUT})


@register_stage
class Quantize(Stage):
    """Round every linear to a low-bit format. A recipe puts together the format and its scales, the rounding,
    a low-rank branch, and the format of the inputs.

    Modulation linears run once per sample, not per token, and their outputs multiply everything that
    follows: they are weight-only, without a branch, and keep more bits. Embedders and the last layer stay as
    they are unless ``keep`` is made shorter; then they are weight-only too.
    """

    kind: Literal["quantize"] = "quantize"
    not_after: ClassVar[frozenset[str]] = frozenset({"quantize"})
    needs_calls: ClassVar[bool] = True

    weights: WeightSpec = WeightSpec(format="int4", group=64)
    activations: Activation = Field(
        default="int8",
        description="how inputs are rounded when the model runs; none: weight-only; int8 and fp8-e4m3: per "
        "token; int4 and fp4-e2m1: per token and group of weights",
    )
    unsigned_after_gelu: StrictBool = Field(
        default=True,
        description="with int4 activations: shift what a GELU gives to be positive and round it unsigned "
        "(SVDQuant); it is never below -0.17",
    )
    modulation: WeightSpec = WeightSpec(format="int8", group="channel")
    ends: WeightSpec = Field(
        default=WeightSpec(format="int8", group="channel"),
        description="of embedders, last layers and others outside the blocks' attention and MLP, where keep "
        "does not name them",
    )
    low_rank: LowRankSpec | None = Field(
        default=None, description="a branch beside every linear of less than 8 bits"
    )
    layers: dict[str, WeightSpec | Literal["keep"]] = Field(
        default={},
        description='weights of single layers, by name pattern (* and ?), or "keep"; the last that '
        "fits counts",
    )
    keep: tuple[Role, ...] = Field(
        default=(Role.EMBEDDER, Role.FINAL, Role.OTHER), description="roles that stay as they are"
    )
    skip: tuple[str, ...] = Field(
        default=(), description="layers that stay as they are, by name pattern (* and ?)"
    )
    sequential: StrictBool = Field(
        default=True,
        description="fit a block to what the quantized blocks before it give, as GPTQ does",
    )

    def plans(self, denoiser: Denoiser, transformer: nn.Module) -> dict[str, LayerPlan]:
        """What every linear becomes that this stage replaces, by full name, in model order.

        Args:
            denoiser: whose anatomy counts.
            transformer: its own, or a skeleton of it: only shapes are read.

        Raises:
            InputError: a pattern that matches no layer, a format, group or rank that the shape of a layer
                does not allow, or no layer left.
        """
        roles = denoiser.anatomy.linears(transformer)
        for setting, patterns in (("skip", self.skip), ("layers", tuple(self.layers))):
            for pattern in patterns:
                if not any(_matches(name, pattern) for name in roles):
                    raise InputError(
                        f'quantize.{setting}: "{pattern}" matches no layer; {_closest(pattern, roles)}'
                    )
        plans: dict[str, LayerPlan] = {}
        for name, role in roles.items():
            module = transformer.get_submodule(name)
            weights = self._weights_of(name, role)
            if weights is None or not isinstance(module, nn.Linear):
                continue
            plan = LayerPlan(weights, "none")
            if role in INNER:
                unsigned = self.activations == "int4" and self.unsigned_after_gelu
                shift = unsigned and role is Role.MLP_OUT and follows_gelu(transformer, name)
                branch = self.low_rank if get_format(weights.format).bits < 8 else None
                plan = LayerPlan(weights, "uint4" if shift else self.activations, branch, shift)
            plan.check(module, name)
            plans[name] = plan
        if not plans:
            raise InputError(
                "quantize: every layer is kept or skipped; shorten quantize.keep or quantize.skip"
            )
        return plans

    def _weights_of(self, name: str, role: Role) -> WeightSpec | None:
        """How the weight of a layer is stored; None: it stays as it is."""
        if any(_matches(name, pattern) for pattern in self.skip):
            return None
        for pattern, own in reversed(self.layers.items()):
            if _matches(name, pattern):
                return own if isinstance(own, WeightSpec) else None
        if role in self.keep:
            return None
        if role is Role.MODULATION:
            return self.modulation
        return self.weights if role in INNER else self.ends

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        for name, plan in self.plans(denoiser, skeleton).items():
            linear = cast(nn.Linear, skeleton.get_submodule(name))
            replace_module(skeleton, linear, empty_layer(linear, plan))

    def wants(self, denoiser: Denoiser) -> list[Want]:
        """Nothing in advance: what it needs is collected block by block, see :meth:`apply_calls`."""
        return []

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        """Without recorded calls: what needs none.

        Raises:
            StageError: a layer needs statistics of its inputs.
        """
        self.apply_calls(denoiser, statistics, ())

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], calls: Sequence[Call]
    ) -> None:
        transformer = denoiser.transformer
        plans = self.plans(denoiser, transformer)
        for name in plans:
            linear = cast(nn.Linear, transformer.get_submodule(name))
            if not bool(torch.isfinite(linear.weight).all()):
                raise InputError(
                    f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
                )
        wanted = {name: plan.statistics() for name, plan in plans.items()}
        first = next((name for name, names in wanted.items() if names), None)
        if first is not None and not calls:
            raise StageError(
                f"{first}: needs statistics of its inputs; give the recorded calls, or use rounding: nearest "
                "without a branch or a shift"
            )
        for part in walk(denoiser, wanted, calls, self.sequential):
            for name, found in track(part.items(), "quantizing", len(part)):
                linear = cast(nn.Linear, transformer.get_submodule(name))
                replace_module(transformer, linear, quantize_linear(linear, plans[name], name, found))


def _matches(name: str, pattern: str) -> bool:
    """Patterns are those of the model's own names, whatever is wrapped around a linear."""
    return fnmatchcase(plain_name(name), pattern)


def _closest(pattern: str, roles: Mapping[str, Role]) -> str:
    """The names most like a pattern that matched nothing: there may be hundreds of layers."""
    names = [plain_name(name) for name in roles]
    return f"closest: {', '.join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))}"
