"""The stage ``prune-width``: heads, channels of heads, hidden units and channels of the residual stream go.

Structured pruning after training and without data: units are rated on recorded calls
(:mod:`ditpress.compress.prune.importance`), the worst are cut out (:mod:`ditpress.compress.prune.groups`),
and the linears that have read them are fitted again, block after block
(:mod:`ditpress.compress.prune.reconstruct`). What is left are smaller dense layers, which every format and
every kernel takes.

Channels of the residual stream go first, out of all blocks at once, and what has read them is not fitted
again: the norms in front of it take their mean and variance over what is left, so it reads other numbers, not
fewer of the same. What reads heads and hidden units is fitted on the inputs that the narrower stream gives.
Distillation is to follow.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, StrictBool
from torch import Tensor, nn

from ditpress.compress.prune.groups import (
    Kept,
    KeptHeads,
    KeptHidden,
    KeptResidual,
    cut,
    masks_of,
    overwrite,
)
from ditpress.compress.prune.importance import gradient_scores, magnitude_scores, random_scores
from ditpress.compress.prune.ranking import allot, best
from ditpress.compress.prune.reconstruct import DAMPING, reconstruct
from ditpress.compress.prune.shares import SETTINGS, Share, groups_to_cut, sizes_left
from ditpress.compress.prune.units import Units, all_units
from ditpress.compress.quantize.layer import SECOND_MOMENT
from ditpress.compress.quantize.walk import check_timesteps, walk
from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError, StageError
from ditpress.load.residual import ResidualGroup
from ditpress.load.widths import Group, HiddenGroup, Sizes, resize, width_groups
from ditpress.schema import Settings

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.calibrate.calls import Call
    from ditpress.load.denoiser import Denoiser

log = logging.getLogger(__name__)

MEAN = "input_mean"


class RoundTo(Settings):
    """What remains is a multiple of these."""

    mlp: int = Field(
        default=64, ge=1, description="hidden units; with 64, groups of 64 weights divide what remains"
    )
    heads: int = Field(default=1, ge=1, description="heads")
    head_dim: int = Field(default=8, ge=1, description="channels of a head")
    residual: int = Field(default=64, ge=1, description="channels of the residual stream")


@register_stage
class PruneWidth(Stage):
    """Cut heads, channels of heads, hidden units and channels of the residual stream."""

    kind: Literal["prune-width"] = "prune-width"
    # Prune first: what comes later works on the weights that remain.
    not_after: ClassVar[frozenset[str]] = frozenset(
        {"prune-width", "quantize", "smooth", "rotate", "subspace", "ternary", "vq", "mixed"}
    )
    needs_calls: ClassVar[bool] = True

    mlp: float = Field(default=0.0, ge=0.0, lt=1.0, description="share of the hidden units of an MLP to cut")
    heads: float = Field(default=0.0, ge=0.0, lt=1.0, description="share of the heads to cut")
    head_dim: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="share of the channels of a head to cut, of each its own"
    )
    residual: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="share of the channels that run through all blocks to cut; what reads them is not fitted "
        "again, distill after it",
    )
    importance: Literal["taylor", "hessian", "magnitude", "random"] = Field(
        default="taylor",
        description="what rates a unit. taylor: how much the output changes without it, to first order; "
        "hessian: the same weight by weight (optimal brain damage); magnitude: the norm of its weights",
    )
    ranking: Literal["local", "global"] = Field(
        default="local",
        description="global: heads of all layers compete, and so do hidden units; widths then differ",
    )
    round_to: RoundTo = RoundTo()
    probes: int = Field(
        default=4, ge=1, description="taylor, hessian: random directions of the output a call"
    )
    reconstruct: StrictBool = Field(
        default=True, description="fit what reads the cut channels again, by least squares on its inputs"
    )
    damping: float = Field(
        default=DAMPING,
        gt=0.0,
        description="of that fit, as a share of the mean variance of the inputs",
    )
    seed: int = Field(default=0, ge=0, description="of the random directions, and of importance random")

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """With ``ranking: global`` every layer is planned alike: the sum is the same for equal layers."""
        resize(skeleton, self._sizes(self._groups(skeleton)))

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        """Refused: see ``apply_calls``. Raises StageError."""
        raise StageError("prune-width: works on recorded calls; call apply_calls")

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], calls: Sequence[Call]
    ) -> dict[str, Any]:
        """Rate, cut and fit.

        Returns:
            ``pruned``: the new sizes of every attention, MLP and stream, by name. ``kept_channels``: those
            of every stream that stayed, by name.

        Raises:
            InputError: nothing to cut, a ratio that leaves nothing, quantized layers, weights that are not
                finite, or too few calls.
        """
        transformer = denoiser.transformer
        groups = self._groups(transformer)
        self._sizes(groups)
        for name in (name for group in groups for name in group.linears):
            if not bool(torch.isfinite(transformer.get_parameter(f"{name}.weight")).all()):
                raise InputError(
                    f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
                )
        kept = self._kept(groups, self._scores(transformer, groups, calls))
        streams = [one for one in kept if isinstance(one, KeptResidual)]
        inside = [one for one in kept if not isinstance(one, KeptResidual)]
        if self.reconstruct and inside:
            check_timesteps(calls)  # before anything is cut
        cut(transformer, streams)
        if self.reconstruct:
            self._cut_and_fit(denoiser, inside, calls)
        else:
            cut(transformer, inside)
        sizes = {group.name: group.sizes for group in width_groups(transformer)}
        changed = {group.name: sizes[group.name] for group in groups if sizes[group.name] != group.sizes}
        log.info("prune-width: %d attentions, MLPs and streams are narrower now", len(changed))
        channels = {one.group.name: one.channels.nonzero()[:, 0].tolist() for one in streams}
        return {"pruned": changed} | ({"kept_channels": channels} if channels else {})

    def _shares(self) -> list[Share]:
        return [Share(name, getattr(self, name), getattr(self.round_to, name)) for name in SETTINGS]

    def _groups(self, transformer: nn.Module) -> list[Group]:
        return groups_to_cut(transformer, self._shares())

    def _sizes(self, groups: Sequence[Group]) -> Sizes:
        return sizes_left(groups, self._shares())

    def _scores(
        self, transformer: nn.Module, groups: Sequence[Group], calls: Sequence[Call]
    ) -> dict[tuple[str, str], Tensor]:
        """Scores [count] by name of the group and kind of the units, of those that will be cut."""
        needed = {
            "heads": self.heads,
            "queries": self.head_dim,
            "values": self.head_dim,
            "hidden": self.mlp,
            "residual": self.residual,
        }
        units: list[Units] = [one for group in groups for one in all_units(group) if needed[one.kind]]
        if self.importance == "magnitude":
            scores = magnitude_scores(transformer, units)
        elif self.importance == "random":
            scores = random_scores(units, self.seed)
        else:
            scores = gradient_scores(transformer, units, calls, self.importance, self.probes, self.seed)
        return {(one.name, one.kind): score for one, score in zip(units, scores, strict=True)}

    def _kept(self, groups: Sequence[Group], scores: Mapping[tuple[str, str], Tensor]) -> list[Kept]:
        sizes = self._sizes(groups)
        counts = {group.name: dict(sizes.get(group.name, group.sizes)) for group in groups}
        if self.ranking == "global":
            for kind, round_to in (("heads", self.round_to.heads), ("hidden", self.round_to.mlp)):
                names = [name for name, found in scores if found == kind]
                own = [self._comparable(scores[name, kind]) for name in names]
                shares = allot(own, [counts[name][kind] for name in names], round_to)
                for name, share in zip(names, shares, strict=True):
                    counts[name][kind] = share
        kept: list[Kept] = []
        for group in groups:
            count = counts[group.name]
            if isinstance(group, HiddenGroup):
                kept.append(KeptHidden(group, best(scores[group.name, "hidden"], count["hidden"])))
                continue
            if isinstance(group, ResidualGroup):
                kept.append(KeptResidual(group, best(scores[group.name, "residual"], count["residual"])))
                continue
            shape = (group.heads, group.head_dim)
            heads = torch.ones(group.heads, dtype=torch.bool)
            if (group.name, "heads") in scores:
                heads = best(scores[group.name, "heads"], count["heads"])
            channels = [
                best(scores[group.name, kind].view(shape), count["head_dim"])
                if (group.name, kind) in scores
                else torch.ones(shape, dtype=torch.bool)
                for kind in ("queries", "values")
            ]
            queries, values = (part & heads[:, None] for part in channels)
            kept.append(KeptHeads(group, queries, values))
        return kept

    def _comparable(self, scores: Tensor) -> Tensor:
        """Scores of one layer, to be compared with those of others: changes of the output are as they are."""
        if self.importance != "magnitude":
            return scores
        return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)

    def _cut_and_fit(
        self, denoiser: Denoiser, kept: Sequence[KeptHeads | KeptHidden], calls: Sequence[Call]
    ) -> None:
        """Block after block, each on the inputs that the cut blocks before it give."""
        transformer = denoiser.transformer
        by_reader: dict[str, list[KeptHeads | KeptHidden]] = defaultdict(list)
        for one in kept:
            for name in one.group.readers:
                by_reader[name].append(one)
        wanted = dict.fromkeys(by_reader, (SECOND_MOMENT, MEAN))
        for part in walk(denoiser, wanted, calls, sequential=True):
            ours = list({one.group.name: one for name in part for one in by_reader[name]}.values())
            masks = masks_of(transformer, ours)
            fitted = {}
            for name, found in part.items():
                if not bool(torch.isfinite(found[SECOND_MOMENT]).all()):
                    raise StageError(
                        f"{name}: its inputs are NaN or infinite in calibration; check the checkpoint"
                    )
                linear = cast(nn.Linear, transformer.get_submodule(name))
                columns = masks[name].columns.to(linear.weight.device)
                if not bool(columns.all()):
                    fitted[name] = reconstruct(
                        linear.weight.detach(),
                        None if linear.bias is None else linear.bias.detach(),
                        columns,
                        found[SECOND_MOMENT],
                        found[MEAN],
                        self.damping,
                    )
            cut(transformer, ours)
            with torch.no_grad():
                for name, (weight, bias) in fitted.items():
                    linear = cast(nn.Linear, transformer.get_submodule(name))
                    overwrite(linear.weight, weight)
                    if linear.bias is not None:
                        overwrite(linear.bias, cast(Tensor, bias))
