"""The stage ``distill``: what is left of the model learns to answer as the whole model did.

Data-free: the original's own sampling trajectories are the data, its answers the target. Feature losses of
TinyFusion (Fang et al. 2025, section 3.4) or LAPTOP-Diff (Zhang et al. 2024, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.compress.distill.guidance import thinned
from ditpress.compress.distill.student_stage import StudentStage
from ditpress.compress.distill.trainer import Training
from ditpress.compress.stage import RunContext, register_stage
from ditpress.errors import InputError
from ditpress.load.anatomy import Anatomy, Role

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.calibrate.calls import Call
    from ditpress.load.denoiser import Denoiser


class DistillTraining(Training):
    """Training of all weights."""

    steps: int = Field(default=2000, ge=1, description="optimizer steps")
    # TinyFusion trains far longer with 2e-4. Half the blocks of zoo:mnist-dit reach an output SQNR of 12.2 dB
    # with that in 120 steps and 13.3 dB with 1e-3; wider models have smaller weights and bear less.
    learning_rate: float = Field(default=5e-4, gt=0, description="peak of the schedule")
    ema: float | None = Field(
        default=0.999, gt=0, lt=1, description="decay of the average of the weights kept at the end"
    )
    features: float = Field(
        default=0.5, ge=0, description="weight of the error of block outputs beside that of the output"
    )


@register_stage
class Distill(StudentStage):
    """Train the float model that the stages before left to answer as the original does."""

    kind: Literal["distill"] = "distill"
    first_seed: ClassVar[int] = 3_000_000
    not_after: ClassVar[frozenset[str]] = frozenset(
        {"quantize", "ternary", "vq", "mixed", "smooth", "rotate", "subspace"}
    )
    float_copies: ClassVar[int] = 7  # original, student, gradient, two moments, average, and the pipeline's

    train: tuple[Role, ...] | None = Field(
        default=None, description="roles of the linears to train; null: every parameter of the model"
    )
    unconditional: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="part of the rows recorded without a condition, for guidance, that are learned; under "
        "guidance w their error counts (w - 1) / w of that of the others",
    )
    training: DistillTraining = DistillTraining()

    def rows(self, calls: Sequence[Call]) -> Sequence[Sequence[int]]:
        return thinned(calls, self.unconditional, torch.Generator().manual_seed(self.training.seed))

    def apply_in_run(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], context: RunContext
    ) -> dict[str, Any]:
        parameters = trained(denoiser.transformer, denoiser.anatomy, self.train)
        original = self.original_in(context)
        calls, targets = self.trajectories(original)
        groups = [{"params": parameters}]
        return self.learn(denoiser.transformer, original, groups, context, calls, targets, "distillation")


def trained(transformer: nn.Module, anatomy: Anatomy, roles: Sequence[Role] | None) -> list[nn.Parameter]:
    """The parameters of the linears with these roles, or all there are; a shared one once.

    Raises:
        InputError: the model has no linear of these roles.
    """
    if roles is None:
        return list(transformer.parameters())
    linears = anatomy.linears(transformer)
    names = [name for name, role in linears.items() if role in roles]
    if not names:
        present = ", ".join(dict.fromkeys(role.value for role in linears.values()))
        raise InputError(
            f"distill.train: the model has no linears of {', '.join(roles) or 'no role'}; expected some of "
            f"{present}, or null for every parameter"
        )
    return list(dict.fromkeys(p for name in names for p in transformer.get_submodule(name).parameters()))
