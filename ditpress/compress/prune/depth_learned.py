"""TinyFusion: learn which blocks to leave out, by how well the model can recover without them.

Fang et al. 2025, "TinyFusion: Diffusion Transformers Learned Shallow". The blocks of each group compete for
its N places; masks are drawn, and their probabilities learned together with low-rank updates of the weights,
which stand for the training that follows. The updates are then thrown away.

The paper minimises the diffusion loss on ImageNet. Here the loss is that of self-distillation on recorded
calls, which needs no data; a mask is drawn for every call rather than for every image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from ditpress.calibrate.blocks import device_of
from ditpress.calibrate.calls import Call
from ditpress.calibrate.parts import split_calls
from ditpress.compress.distill.lora import low_rank_updates
from ditpress.compress.distill.resume import SavedTraining
from ditpress.compress.distill.trainer import Training, distill, teacher_outputs
from ditpress.compress.prune.blocks import gated
from ditpress.compress.prune.masks import gumbel_noise, sample_mask
from ditpress.errors import InputError
from ditpress.schema import Settings

START = 0.02  # standard deviation of the logits at the beginning


class MaskTraining(Training):
    """Training of the low-rank updates; the gates learn at ``gate_rate`` times its rate."""

    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    calls: int = Field(default=4, ge=1, description="recorded calls a step, each with masks of its own")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak of the schedule, for the updates")
    ema: float | None = Field(
        default=0.999, gt=0, lt=1, description="decay of the average of the gates, which decides"
    )


class LearnedSpec(Settings):
    """Settings of the learned criterion; defaults of TinyFusion's code."""

    group: int = Field(default=2, ge=2, description="consecutive blocks that compete for the places")
    tau: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(4.0, 0.1), description="temperature of the samples, first and last step, linear between"
    )
    scaling: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(100.0, 100.0), description="factor on the logits, first and last step, linear between"
    )
    gate_rate: float = Field(default=10.0, gt=0, description="learning rate of the gates over the updates'")
    rank: int = Field(default=8, ge=1, description="of the low-rank updates")
    alpha: float = Field(default=16.0, gt=0, description="alpha / rank multiplies the updates")
    rows: int = Field(default=8, ge=1, description="rows of a recorded call that share a mask")
    save_every: int = Field(default=100, ge=1, description="steps between saves that a killed run resumes")
    training: MaskTraining = MaskTraining()


@dataclass(frozen=True)
class Group:
    """Blocks that compete, by full name, and the masks [C, M] they can have."""

    names: tuple[str, ...]
    masks: Tensor


class Gates(nn.Module):
    """A distribution over the masks of every group, and the masks that are drawn from it.

    Args:
        groups: of blocks.
        spec: schedules of temperature and scaling over ``spec.training.steps``.
        device: of the logits.
    """

    def __init__(self, groups: Sequence[Group], spec: LearnedSpec, device: torch.device) -> None:
        super().__init__()
        self.groups = groups
        self.spec = spec
        self.step = 0
        self.generator = torch.Generator().manual_seed(spec.training.seed)
        self.logits = nn.ParameterList(
            nn.Parameter((START * torch.randn(len(group.masks), generator=self.generator)).to(device))
            for group in groups
        )
        self.drawn: dict[str, Tensor] = {}

    def draw(self) -> None:
        """New masks; :meth:`gate` answers from them."""
        spec = self.spec
        tau, scaling = self._at(spec.tau), self._at(spec.scaling)
        for group, logits in zip(self.groups, self.logits, strict=True):
            noise = gumbel_noise(len(group.masks), self.generator).to(logits.device)
            mask = sample_mask(logits * scaling, group.masks.to(logits.device), noise, tau)
            self.drawn |= dict(zip(group.names, mask, strict=True))

    def gate(self, name: str) -> Tensor:
        """How much of a block counts."""
        return self.drawn[name]

    def advance(self) -> None:
        """The schedules go on by a step."""
        self.step += 1

    def training_state(self) -> dict[str, Tensor]:
        """See :class:`ditpress.compress.distill.resume.Stateful`: the schedule, and where the draws are."""
        return {"step": torch.tensor(self.step), "generator": self.generator.get_state()}

    def set_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`training_state` gave."""
        self.step = int(state["step"])
        self.generator.set_state(state["generator"])

    def kept(self) -> list[str]:
        """Names of the blocks in the likeliest masks."""
        return [
            name
            for group, logits in zip(self.groups, self.logits, strict=True)
            for name, stays in zip(group.names, group.masks[int(logits.argmax())], strict=True)
            if stays
        ]

    def probabilities(self) -> dict[str, float]:
        """How likely every block is to stay."""
        scaling = self._at(self.spec.scaling)
        found: dict[str, float] = {}
        for group, logits in zip(self.groups, self.logits, strict=True):
            stays = (logits.detach().cpu() * scaling).softmax(dim=-1) @ group.masks
            found |= dict(zip(group.names, stays.tolist(), strict=True))
        return found

    def _at(self, schedule: tuple[float, float]) -> float:
        part = min(self.step / max(1, self.spec.training.steps - 1), 1.0)
        return schedule[0] + (schedule[1] - schedule[0]) * part


class _Masked(nn.Module):
    """The transformer, with masks drawn anew in every call."""

    def __init__(self, transformer: nn.Module, gates: Gates) -> None:
        super().__init__()
        self.transformer = transformer
        self.gates = gates

    def forward(self, **kwargs: Any) -> Any:
        self.gates.draw()
        return self.transformer(**kwargs)


def learn_masks(
    transformer: nn.Module,
    calls: Sequence[Call],
    groups: Sequence[Group],
    linears: Sequence[str],
    spec: LearnedSpec,
    work: Path | None = None,
) -> Gates:
    """The gates after training; ``transformer`` is as before, to the bit.

    Args:
        transformer: the float model, whose own answers are what is learned.
        calls: recorded calls.
        groups: blocks that compete, all those of the model or some.
        linears: names of the linears that low-rank updates stand beside.
        spec: settings.
        work: a folder from which a killed training goes on; None: nothing is kept.

    Raises:
        InputError: fewer calls than a training step sees.
        StageError: the loss is not finite.
    """
    parts = split_calls(calls, spec.rows)
    if len(parts) < spec.training.calls:
        raise InputError(
            f"prune-depth: {len(parts)} recorded calls to learn from, a training step sees "
            f"{spec.training.calls}; raise calibration.steps or calibration.samples"
        )
    device = device_of(transformer)
    targets = teacher_outputs(transformer, parts, device)
    gates = Gates(groups, spec, device)
    names = [name for group in groups for name in group.names]
    training = spec.training
    with (
        low_rank_updates(transformer, linears, spec.rank, spec.alpha, training.seed) as updates,
        gated(transformer, names, gates.gate),
    ):
        distill(
            _Masked(transformer, gates),
            transformer,
            parts,
            training,
            [{"params": updates}, {"params": list(gates.logits), "rate": spec.gate_rate}],
            targets=targets,
            after_step=gates.advance,
            saved=None if work is None else SavedTraining(work, spec.save_every, gates),
            description="learning which blocks to keep",
        )
    return gates
