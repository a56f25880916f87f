"""The stage ``prune-depth``: whole blocks go.

At equal parameters a shallow model is faster than a narrow one: the blocks run one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.calibrate.calls import Call
from ditpress.calibrate.data import noised_like
from ditpress.compress.distill.data import DataStage
from ditpress.compress.prune.blocks import block_names, check_kept, cut_blocks
from ditpress.compress.prune.depth_learned import Group, LearnedSpec, learn_masks
from ditpress.compress.prune.depth_output import output_errors
from ditpress.compress.prune.depth_similarity import block_influence
from ditpress.compress.prune.masks import all_masks
from ditpress.compress.stage import RunContext, register_stage
from ditpress.errors import InputError

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser

ROUNDING = 1e-9  # 0.29 * 100 is a little less than 29 in floating point
LOW_BIT = frozenset({"quantize", "ternary", "vq", "mixed"})
AROUND = frozenset({"smooth", "rotate", "subspace"})  # put modules around the linears, to be quantized next


@register_stage
class PruneDepth(DataStage):
    """Cut blocks out of the model. What is left wants to be distilled next.

    Criteria: ``learned`` of TinyFusion; ``output``, the additive error of LAPTOP-Diff; ``similarity``, the
    block influence of ShortGPT; ``random``, the baseline. They look at the recorded calls, or with ``data``
    at as many calls at noised data.
    """

    kind: Literal["prune-depth"] = "prune-depth"
    not_after: ClassVar[frozenset[str]] = LOW_BIT | AROUND | {"prune-depth"}
    needs_calls: ClassVar[bool] = True
    saved_copies: ClassVar[int] = 1  # low-rank updates with two moments and average, old and new: less

    ratio: float = Field(
        default=0.5, gt=0, lt=1, description="part of the blocks of every list to leave out, rounded down"
    )
    keep: tuple[int, ...] | dict[str, tuple[int, ...]] | None = Field(
        default=None,
        description="indices of the blocks that stay, in models with two lists by the list's name; ratio and "
        "criterion then do not count",
    )
    criterion: Literal["learned", "output", "similarity", "random"] = "learned"
    calls: int = Field(
        default=16,
        ge=1,
        description="most recorded calls, spread over the timesteps, that output and similarity look at",
    )
    learned: LearnedSpec = LearnedSpec()
    seed: int = Field(default=0, ge=0, description="of the criterion random, and of noise on data")

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """Which blocks go is not known before they are measured; how many is. Blocks of one list count as
        equal (in SD3.5 some have a second attention)."""
        anatomy = denoiser.anatomy
        self.loaded_data(denoiser)
        kept = self._given(denoiser, skeleton)
        if kept is None and self.criterion == "learned":
            groups = self._groups(denoiser, skeleton)
            kept = _by_list(name for g in groups for name, m in zip(g.names, g.masks[-1], strict=True) if m)
        elif kept is None:
            # The last ones stay, as far as none else must.
            order = {name: float(i) for i, name in enumerate(_flat(block_names(skeleton, anatomy)))}
            kept = self._best(denoiser, skeleton, order)
        cut_blocks(skeleton, anatomy, kept)

    def passes(self, denoiser: Denoiser) -> float:
        if self.keep is not None or self.criterion == "random":
            return 0.0
        if self.criterion == "learned":
            training = self.learned.training
            return 3 * training.steps * training.calls * self.learned.rows / 2  # two rows an image
        blocks = len(_flat(block_names(denoiser.transformer, denoiser.anatomy)))
        return self.calls * (blocks + 1.0 if self.criterion == "output" else 1.0)

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        self.apply_calls(denoiser, statistics, ())

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], calls: Sequence[Call]
    ) -> dict[str, Any]:
        return self.apply_in_run(denoiser, statistics, RunContext(calls))

    def apply_in_run(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], context: RunContext
    ) -> dict[str, Any]:
        transformer, anatomy = denoiser.transformer, denoiser.anatomy
        count = {name: len(blocks) for name, blocks in block_names(transformer, anatomy).items()}
        scores: dict[str, float] = {}
        kept = self._given(denoiser, transformer)
        if kept is None:
            calls, data = context.calls, self.loaded_data(denoiser)
            if data is not None and calls:
                calls = noised_like(calls, denoiser, data, self.seed)
            kept, scores = self._chosen(denoiser, calls, context.work)
        cut_blocks(transformer, anatomy, kept)
        stayed = {name: kept.get(name, list(range(count[name]))) for name in count}
        return {"kept_blocks": stayed, "block_scores": scores}

    def _chosen(
        self, denoiser: Denoiser, calls: Sequence[Call], work: Path | None
    ) -> tuple[dict[str, list[int]], dict[str, float]]:
        """Which blocks stay, and what every block is worth: by error, influence or probability to stay."""
        transformer, names = denoiser.transformer, _flat(block_names(denoiser.transformer, denoiser.anatomy))
        if self.criterion == "learned":
            groups = self._groups(denoiser, transformer)
            linears = list(denoiser.anatomy.linears(transformer))
            gates = learn_masks(transformer, calls, groups, linears, self.learned, work)
            return _by_list(gates.kept()), gates.probabilities()
        self._counts(denoiser, transformer)
        if self.criterion == "random":
            drawn = torch.rand(len(names), generator=torch.Generator().manual_seed(self.seed))
            scores = dict(zip(names, drawn.tolist(), strict=True))
            return self._best(denoiser, transformer, scores), scores
        if not calls:
            raise InputError(
                f"prune-depth: no recorded calls to judge {names[0]} and the others by; give calls, or "
                "choose the blocks with keep"
            )
        measure = output_errors if self.criterion == "output" else block_influence
        scores = measure(transformer, _spread(calls, self.calls), names)
        return self._best(denoiser, transformer, scores), scores

    def _given(self, denoiser: Denoiser, transformer: nn.Module) -> dict[str, list[int]] | None:
        """The blocks that the recipe names."""
        if self.keep is None:
            return None
        lists = denoiser.anatomy.block_lists(transformer)
        if isinstance(self.keep, tuple):
            if len(lists) > 1:
                raise InputError(
                    f"prune-depth.keep: the model has the lists of blocks {' and '.join(lists)}; name them, "
                    f"as in keep: {{{lists[0]}: [0, 1]}}"
                )
            kept = {lists[0]: sorted(self.keep)}
        else:
            kept = {name: sorted(indices) for name, indices in self.keep.items()}
        check_kept(transformer, denoiser.anatomy, kept)
        return kept

    def _counts(self, denoiser: Denoiser, transformer: nn.Module) -> dict[str, int]:
        """How many blocks of every list go; of lists too short to lose any, none.

        Raises:
            InputError: no block of the model, all of a list, or one that must stay would go.
        """
        names = block_names(transformer, denoiser.anatomy)
        counts = {name: math.floor(self.ratio * len(blocks) + ROUNDING) for name, blocks in names.items()}
        if not any(counts.values()):
            lengths = " and ".join(f"the {len(blocks)} blocks of {name}" for name, blocks in names.items())
            raise InputError(f"prune-depth.ratio {self.ratio}: takes none of {lengths}; raise it")
        for name, count in counts.items():
            total, fixed = len(names[name]), denoiser.anatomy.fixed_blocks(transformer, name)
            if total - count < max(1, len(fixed)):
                stay = "" if not fixed else f" (of which {name}.{min(fixed)} must stay)"
                raise InputError(
                    f"prune-depth.ratio {self.ratio}: takes {count} of the {total} blocks of {name}{stay}; "
                    "lower it"
                )
        return counts

    def _best(
        self, denoiser: Denoiser, transformer: nn.Module, scores: Mapping[str, float]
    ) -> dict[str, list[int]]:
        """The subset of least total score that may go: with additive scores and equal blocks, the lowest."""
        counts = self._counts(denoiser, transformer)
        kept = {}
        for name, blocks in block_names(transformer, denoiser.anatomy).items():
            fixed = denoiser.anatomy.fixed_blocks(transformer, name)
            free = [index for index in range(len(blocks)) if index not in fixed]
            going = sorted(free, key=lambda index: (scores[blocks[index]], index))[: counts[name]]
            kept[name] = [index for index in range(len(blocks)) if index not in going]
        return kept

    def _groups(self, denoiser: Denoiser, transformer: nn.Module) -> list[Group]:
        """Groups of consecutive blocks, each with the masks that leave ``ratio`` of it out.

        Raises:
            InputError: groups that do not divide the blocks, or cannot lose that part.
        """
        size, leaving = self.learned.group, self.ratio * self.learned.group
        if not math.isclose(leaving, round(leaving), abs_tol=ROUNDING) or not 0 < round(leaving) < size:
            possible = ", ".join(f"{n / size:.4g}" for n in range(1, size))
            raise InputError(
                f"prune-depth.ratio {self.ratio}: no whole number of the {size} blocks of a group; expected "
                f"one of {possible}, or another learned.group"
            )
        groups = []
        for name, blocks in block_names(transformer, denoiser.anatomy).items():
            if len(blocks) % size:
                raise InputError(
                    f"prune-depth.learned.group {size}: does not divide the {len(blocks)} blocks of {name}; "
                    "choose one that does, or another criterion"
                )
            fixed = denoiser.anatomy.fixed_blocks(transformer, name)
            for start in range(0, len(blocks), size):
                inside = [index - start for index in fixed if start <= index < start + size]
                if len(inside) > size - round(leaving):
                    raise InputError(
                        f"prune-depth.ratio {self.ratio}: leaves {size - round(leaving)} of the blocks "
                        f"{start} to {start + size - 1} of {name}, {len(inside)} of which must stay; lower it"
                    )
                masks = all_masks(size - round(leaving), size, inside)
                groups.append(Group(tuple(blocks[start : start + size]), masks))
        return groups


def _flat(names: Mapping[str, Sequence[str]]) -> list[str]:
    return [block for blocks in names.values() for block in blocks]


def _by_list(names: Any) -> dict[str, list[int]]:
    """Indices by list of blocks, from full names."""
    found: dict[str, list[int]] = {}
    for name in names:
        block_list, _, index = cast(str, name).rpartition(".")
        found.setdefault(block_list, []).append(int(index))
    return found


def _spread(calls: Sequence[Call], count: int) -> list[Call]:
    """At most ``count`` calls, evenly over the recorded ones, the first and the last among them."""
    if len(calls) <= count:
        return list(calls)
    return [calls[index * (len(calls) - 1) // max(1, count - 1)] for index in range(count)]
