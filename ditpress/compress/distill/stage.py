"""The stage ``distill``: what is left of the model learns to answer as the whole model did.

Data-free: the original's own sampling trajectories are the data, its answers the target. Feature losses of
TinyFusion (Fang et al. 2025, section 3.4) or LAPTOP-Diff (Zhang et al. 2024, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ditpress.compress.distill.losses import masked_error, relative_error
from ditpress.compress.distill.resume import SavedTraining
from ditpress.compress.distill.trainer import Training, distill
from ditpress.compress.distill.trajectory_stage import TrajectoryStage
from ditpress.compress.stage import RunContext, register_stage
from ditpress.errors import InputError
from ditpress.load.anatomy import Anatomy, Role

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
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
class Distill(TrajectoryStage):
    """Train the float model that the stages before left to answer as the original does.

    Blocks are compared after each block of the student with the original's hidden state at the same place:
    where the next kept block begins.
    """

    kind: Literal["distill"] = "distill"
    first_seed: ClassVar[int] = 3_000_000
    not_after: ClassVar[frozenset[str]] = frozenset(
        {"quantize", "ternary", "vq", "mixed", "smooth", "rotate", "subspace"}
    )
    float_copies: ClassVar[int] = 7  # original, student, gradient, two moments, average, and the pipeline's
    saved_copies: ClassVar[int] = 8  # parameters, two moments, average; old and new while one is replaced

    train: tuple[Role, ...] | None = Field(
        default=None, description="roles of the linears to train; null: every parameter of the model"
    )
    feature_loss: Literal["masked", "normalized"] = Field(
        default="masked",
        description="masked: without outliers beyond two sigmas (TinyFusion); normalized: all (LAPTOP-Diff)",
    )
    bf16: bool = Field(default=True, description="on GPUs compute in bfloat16; parameters stay float32")
    save_every: int = Field(default=200, ge=1, description="steps between saves that a killed run resumes")
    training: DistillTraining = DistillTraining()

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        self.apply_in_run(denoiser, statistics, RunContext())

    def apply_in_run(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], context: RunContext
    ) -> dict[str, Any]:
        if context.original is None:
            raise InputError("distill: there is no original to learn from; apply it in a run of a recipe")
        student, anatomy = denoiser.transformer, denoiser.anatomy
        parameters = trained(student, anatomy, self.train)
        original = context.original()
        kept: dict[str, list[int]] = {}
        for facts in context.facts:
            kept |= facts.get("kept_blocks", {})
        pairs = block_pairs(student, original.transformer, anatomy, kept)
        calls, targets = self.trajectories(original)
        history = distill(
            student,
            original.transformer,
            calls,
            self.training,
            [{"params": parameters}],
            targets=targets,
            blocks=pairs,
            feature_error=masked_error if self.feature_loss == "masked" else relative_error,
            autocast=self.bf16,
            saved=None if context.work is None else SavedTraining(context.work, self.save_every),
            description="distillation",
        )
        part = max(1, len(history) // 20)
        return {"loss": {"first": sum(history[:part]) / part, "last": sum(history[-part:]) / part}}


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


def block_pairs(
    student: nn.Module, teacher: nn.Module, anatomy: Anatomy, kept: Mapping[str, Sequence[int]]
) -> list[tuple[str, str]]:
    """Blocks after which the two models should hold the same: (in the student, in the teacher).

    The student's next block is a certain one of the teacher's; what it read there was the output of the
    block before it. After the last kept block it is the output of the last block of all.

    Args:
        student, teacher: the pruned and the whole transformer.
        anatomy: of both.
        kept: the teacher's indices of the student's blocks, by list; of lists that it does not name, all.

    Raises:
        InputError: the student has not the blocks that ``kept`` says.
    """
    pairs = []
    for name in anatomy.block_lists(teacher):
        count, whole = len(getattr(student, name)), len(getattr(teacher, name))
        stayed = list(kept.get(name, range(whole)))
        if len(stayed) != count:
            raise InputError(
                f"distill: {name} has {count} blocks, expected {len(stayed)} of the original's {whole}; "
                "put prune-depth before it in the same recipe"
            )
        ends = [index - 1 for index in stayed[1:]] + [whole - 1]
        pairs += [(f"{name}.{i}", f"{name}.{end}") for i, end in enumerate(ends)]
    return pairs
