"""The stage ``smooth``: activation outliers move into the weights, exactly, before anything is quantized.

In a DiT the factor is absorbed by what produces the linear's input: the adaLN modulation (shift and scale
rows) or the V projection in front of the attention's output projection, so nothing is added to the graph.
Where a non-linearity stands in between (the second linear of an MLP), inputs are multiplied at run time.
The mathematics is in :mod:`ditpress.compress.smoothing`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ditpress.calibrate.calibration import Want
from ditpress.compress.absorb import fold, put_online, weight_of
from ditpress.compress.quantize.layer import SECOND_MOMENT
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.rehearsal import Rehearsal
from ditpress.compress.smoothing import candidates, search_smoothing, smoothing_factors, weight_absmax
from ditpress.compress.stage import Stage, register_stage
from ditpress.compress.subspace import SubspaceStage
from ditpress.errors import InputError, StageError
from ditpress.kernels.activations import Activation
from ditpress.kernels.transforms import ChannelScale
from ditpress.kernels.wrap import TransformedLinear
from ditpress.load.anatomy import Role
from ditpress.load.modules import replace_module
from ditpress.progress import track

if TYPE_CHECKING:
    from ditpress.calibrate.calls import Call
    from ditpress.load.anatomy import Anatomy, SmoothGroup
    from ditpress.load.denoiser import Denoiser

log = logging.getLogger(__name__)

MIN, MAX, ROWS = "input_min", "input_max", "input_rows"
SMOOTHED = (Role.QKV, Role.ATTENTION_OUT, Role.MLP_IN, Role.MLP_OUT)


@dataclass(frozen=True)
class Target:
    """Linears that share their factors, and the group that absorbs these; None: the run time applies them."""

    linears: tuple[str, ...]
    group: SmoothGroup | None


@register_stage
class Smooth(Stage):
    """Smoothing with one exponent for all layers (SmoothQuant) or the best for each (DiTAS, SVDQuant)."""

    kind: Literal["smooth"] = "smooth"
    not_after: ClassVar[frozenset[str]] = frozenset({"smooth", "quantize"})  # folding needs float weights
    needs_calls: ClassVar[bool] = True

    alpha: float | Literal["search"] = Field(
        default=0.5,
        description="migration strength, 0..1, SmoothQuant eq. 4; 0.5 in the paper. search: for each "
        "layer the one of least output error on inputs of all timesteps (DiTAS)",
    )
    candidates: Literal["smoothquant", "svdquant"] = Field(
        default="smoothquant",
        description="what is searched: 21 exponents with alpha + beta = 1 (DiTAS), or those of a grid of "
        "20 and the inputs alone too (SVDQuant); no smoothing is always one of them",
    )
    online: tuple[Role, ...] = Field(
        default=(Role.MLP_OUT,),
        description="roles whose inputs are multiplied at run time where nothing can absorb the factors; "
        "others stay as they are",
    )
    weights: WeightSpec | None = Field(
        default=None, description="for the search: storage of weights; null: that of the stage quantize"
    )
    activations: Activation | None = Field(
        default=None, description="for the search: format of inputs; null: that of the stage quantize"
    )
    split: SubspaceStage | None = Field(
        default=None,
        description="for the search: principal directions that leave the inputs before they are rounded; "
        "null: those of the stage subspace, where one follows",
    )
    min_timesteps: int = Field(
        default=8, ge=1, description="different timesteps that a search needs: activations drift with them"
    )

    @field_validator("alpha", mode="before")
    @classmethod
    def _known_alpha(cls, value: object) -> object:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0
        if value != "search" and not number:
            raise InputError(f'smooth.alpha: expected a number from 0 to 1, or "search", got {value!r}')
        return value

    @field_validator("online")
    @classmethod
    def _known_roles(cls, value: tuple[Role, ...]) -> tuple[Role, ...]:
        for role in value:
            if role not in SMOOTHED:
                raise InputError(f"smooth.online: {role.value} is not smoothed; known: {', '.join(SMOOTHED)}")
        return value

    def completed(self, later: Sequence[Stage]) -> Smooth:
        """With the formats of the stage quantize and the split of the stage subspace that follow, where a
        search needs them and has none.

        Raises:
            InputError: a search without formats, and no stage quantize after this one.
        """
        if self.alpha != "search":
            return self
        update: dict[str, Any] = {}
        following = next((stage for stage in later if isinstance(stage, Quantize)), None)
        if following is None:
            self._formats()
        else:
            update["weights"] = following.weights if self.weights is None else self.weights
            update["activations"] = following.activations if self.activations is None else self.activations
        if self.split is None:
            update["split"] = next((stage for stage in later if isinstance(stage, SubspaceStage)), None)
        return self.model_copy(update=update)

    def targets(self, anatomy: Anatomy, transformer: nn.Module) -> list[Target]:
        """What is smoothed: first the groups that fold, then single linears of the roles in ``online``."""
        groups = anatomy.smooth_groups(transformer)
        folded = {name for group in groups for name in group.linears}
        online = [
            name
            for name, role in anatomy.linears(transformer).items()
            if role in self.online
            and name not in folded
            and isinstance(transformer.get_submodule(name), nn.Linear)
        ]
        return [Target(group.linears, group) for group in groups] + [Target((name,), None) for name in online]

    def wants(self, denoiser: Denoiser) -> list[Want]:
        """Input range, and what a search looks at, of one linear of every group: the others read the same."""
        statistics = (MIN, MAX, ROWS) if self.alpha == "search" else (MIN, MAX)
        targets = self.targets(denoiser.anatomy, denoiser.transformer)
        wanted = [Want(target.linears[0], name) for target in targets for name in statistics]
        if self.alpha == "search" and self.weights is not None and self.weights.rounding == "gptq":
            # Not of hidden units: the moments of all blocks at once would be larger than the model.
            folded = [target.linears[0] for target in targets if target.group is not None]
            wanted += [Want(name, SECOND_MOMENT) for name in folded]
        return wanted

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        for target in self.targets(denoiser.anatomy, skeleton):
            if target.group is None:
                linear = cast(nn.Linear, skeleton.get_submodule(target.linears[0]))
                empty = TransformedLinear.empty(linear, "meta", transform={"kind": ChannelScale.kind})
                replace_module(skeleton, linear, empty)

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], calls: Sequence[Call]
    ) -> None:
        """``apply``, on statistics of these calls.

        Raises:
            InputError: a search on fewer timesteps than ``min_timesteps``.
        """
        steps = len({call.timestep for call in calls})
        targets = self.targets(denoiser.anatomy, denoiser.transformer)
        if self.alpha == "search" and targets and steps < self.min_timesteps:
            raise InputError(
                f"{targets[0].linears[0]}: its inputs come from {steps} different timesteps, the search of "
                f"smooth.alpha needs {self.min_timesteps}; set calibration.steps to {self.min_timesteps} or "
                "more, or smooth.alpha to 0.5"
            )
        self.apply(denoiser, statistics)

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        transformer = denoiser.transformer
        targets = self.targets(denoiser.anatomy, transformer)
        if self.alpha == "search":
            self._formats()
        roles = denoiser.anatomy.linears(transformer)
        _say_what_stays(roles, targets)
        for target in targets:
            _check(transformer, target, statistics)
        with torch.no_grad():
            # All factors before the first change: what is refused, leaves the model as it was.
            described = "searching" if self.alpha == "search" else "smoothing"
            factors = [
                self._factors(_linears(transformer, target), target, statistics, roles[target.linears[0]])
                for target in track(targets, described, len(targets))
            ]
            for target, found in zip(targets, factors, strict=True):
                if target.group is None:
                    put_online(transformer, target.linears[0], found)
                else:
                    fold(transformer, target.group, found)

    def _factors(
        self, linears: Sequence[nn.Linear], target: Target, statistics: Mapping[Want, Tensor], role: Role
    ) -> Tensor:
        """Factors of the ``linears`` of one target, float64 [K], on the device of their weights."""
        first = target.linears[0]
        weights = [weight_of(linear) for linear in linears]
        device = weights[0].device
        absmax = _absmax(statistics, first).to(device)
        if self.alpha != "search":
            return smoothing_factors(absmax, weight_absmax(weights), float(self.alpha))
        rehearsal = self.rehearsal(linears, role)
        moment = statistics.get(Want(first, SECOND_MOMENT))

        def settled(inputs: Tensor, weight: Tensor, index: int, scale: Tensor) -> Tensor:
            inverse = scale.reciprocal().cpu()
            scaled = inverse[:, None] * cast(Tensor, moment) * inverse
            return rehearsal.outputs(inputs, weight, scaled, target.linears[index])

        found = search_smoothing(
            statistics[Want(first, ROWS)].to(device),
            weights,
            absmax,
            candidates(self.candidates),
            rehearsal.inputs,
            lambda weight, index: rehearsal.nearest(weight, target.linears[index]),
            None if moment is None else settled,
        )
        log.info(
            "%s: exponents %g of inputs and %g of weights, squared output error %.3g of that without",
            first,
            *found.exponents,
            found.error / found.plain_error if found.plain_error else 1.0,
        )
        return found.factors

    def _formats(self) -> tuple[WeightSpec, Activation]:
        """Formats of weights and inputs in the search."""
        if self.weights is None or self.activations is None:
            missing = "weights" if self.weights is None else "activations"
            raise InputError(
                f"smooth.{missing}: the search needs to know the formats that follow; put a stage quantize "
                f"after smooth, or give smooth.{missing}"
            )
        return self.weights, self.activations

    def rehearsal(self, linears: Sequence[nn.Linear], role: Role) -> Rehearsal:
        """What a search tries its candidates by, on ``linears`` that read one tensor."""
        weights, activation = self._formats()
        split = self.split is not None and role in self.split.roles
        rank = cast(SubspaceStage, self.split).rank_of(linears) if split else 0
        return Rehearsal(weights, activation, weights.group_size(linears[0].in_features), rank)


def _say_what_stays(roles: Mapping[str, Role], targets: Sequence[Target]) -> None:
    smoothed = {name for target in targets for name in target.linears}
    left = Counter(role for name, role in roles.items() if role in SMOOTHED and name not in smoothed)
    for role, count in left.items():
        log.info(
            "smooth: nothing can absorb the factors of %d linears of role %s, they stay as they are; "
            "add the role to smooth.online to multiply their inputs at run time",
            count,
            role.value,
        )


def _linears(transformer: nn.Module, target: Target) -> list[nn.Linear]:
    return [cast(nn.Linear, transformer.get_submodule(name)) for name in target.linears]


def _absmax(statistics: Mapping[Want, Tensor], name: str) -> Tensor:
    """Largest |x| per channel over tokens, batch and all timesteps (DiTAS: temporal aggregation), [K]."""
    return torch.maximum(statistics[Want(name, MIN)].abs(), statistics[Want(name, MAX)].abs())


def _check(transformer: nn.Module, target: Target, statistics: Mapping[Want, Tensor]) -> None:
    """Everything that can be wrong with a target, before the first weight changes."""
    source = () if target.group is None else (target.group.source,)
    for name in (*target.linears, *source):
        if not bool(torch.isfinite(weight_of(transformer.get_submodule(name))).all()):
            raise InputError(
                f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
            )
    if target.group is not None and target.group.absorb == "modulation":
        bias = transformer.get_submodule(target.group.source).bias
        if not isinstance(bias, Tensor):
            raise StageError(
                f"{target.group.source} has no bias, which must absorb the smoothing; leave smooth out"
            )
    first = target.linears[0]
    low, high = statistics[Want(first, MIN)], statistics[Want(first, MAX)]
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise StageError(f"{first}: its inputs are NaN or overflow during calibration; check the checkpoint")
    if torch.equal(low, high):
        raise StageError(
            f"{first}: its inputs are the same for every token and timestep, there is no range to smooth; "
            "check the checkpoint, or calibrate with more samples and steps"
        )
