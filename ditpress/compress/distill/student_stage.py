"""What stages have in common in which the model that is left learns to answer as the original did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ditpress.calibrate.parts import rows_of
from ditpress.compress.distill.losses import masked_error, relative_error
from ditpress.compress.distill.resume import SavedTraining
from ditpress.compress.distill.trainer import distill
from ditpress.compress.distill.trajectory_stage import TrajectoryStage
from ditpress.compress.stage import RunContext
from ditpress.errors import InputError
from ditpress.load.anatomy import Anatomy
from ditpress.load.residual import ResidualGroup
from ditpress.load.widths import width_groups

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.calibrate.calls import Call
    from ditpress.load.denoiser import Denoiser


class StudentStage(TrajectoryStage):
    """A stage that trains the model of the stages before it, the student, in place.

    Blocks are compared after each block of the student with the original's hidden state at the same place:
    where the next kept block begins, in those of its channels that the student has kept.
    """

    shared: ClassVar[bool] = True
    saved_copies: ClassVar[int] = 8  # parameters, two moments, average; old and new while one is replaced

    feature_loss: Literal["masked", "normalized"] = Field(
        default="masked",
        description="masked: without outliers beyond two sigmas (TinyFusion); normalized: all (LAPTOP-Diff)",
    )
    bf16: bool = Field(default=True, description="on GPUs compute in bfloat16; parameters stay float32")
    save_every: int = Field(default=200, ge=1, description="steps between saves that a killed run resumes")

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        self.apply_in_run(denoiser, statistics, RunContext())

    def original_in(self, context: RunContext) -> Denoiser:
        """The model to learn from. Raises InputError outside of a run."""
        if context.original is None:
            raise InputError(
                f"{self.kind}: there is no original to learn from; apply it in a run of a recipe"
            )
        return context.original()

    def rows(self, calls: Sequence[Call]) -> Sequence[Sequence[int]]:
        """Of every call, the rows that are learned."""
        return [range(rows_of(call)) for call in calls]

    def learn(
        self,
        student: nn.Module,
        original: Denoiser,
        groups: Sequence[dict[str, Any]],
        context: RunContext,
        calls: Sequence[Call],
        targets: Sequence[Tensor],
        description: str,
    ) -> dict[str, Any]:
        """Train the parameters in ``groups`` of ``student`` in place; see :func:`distill`.

        Returns:
            ``loss``: its mean over the ``first`` and the ``last`` twentieth of the steps.
        """
        kept: dict[str, list[int]] = {}
        channels: dict[str, list[int]] = {}
        for facts in context.facts:
            kept |= facts.get("kept_blocks", {})
            channels |= facts.get("kept_channels", {})
        teacher = original.transformer
        history = distill(
            student,
            teacher,
            calls,
            self.training,
            groups,
            targets=targets,
            rows=self.rows(calls),
            blocks=block_pairs(student, teacher, original.anatomy, kept, self.kind),
            of_teacher=kept_parts(teacher, channels),
            feature_error=masked_error if self.feature_loss == "masked" else relative_error,
            autocast=self.bf16,
            saved=None if context.work is None else SavedTraining(context.work, self.save_every),
            processes=context.processes,
            description=description,
        )
        part = max(1, len(history) // 20)
        return {"loss": {"first": sum(history[:part]) / part, "last": sum(history[-part:]) / part}}


def block_pairs(
    student: nn.Module,
    teacher: nn.Module,
    anatomy: Anatomy,
    kept: Mapping[str, Sequence[int]],
    stage: str = "distill",
) -> list[tuple[str, str]]:
    """Blocks after which the two models should hold the same: (in the student, in the teacher).

    The student's next block is a certain one of the teacher's; what it read there was the output of the
    block before it. After the last kept block it is the output of the last block of all.

    Args:
        student, teacher: the pruned and the whole transformer.
        anatomy: of both.
        kept: the teacher's indices of the student's blocks, by list; of lists that it does not name, all.
        stage: its kind, for errors.

    Raises:
        InputError: the student has not the blocks that ``kept`` says.
    """
    pairs = []
    for name in anatomy.block_lists(teacher):
        count, whole = len(getattr(student, name)), len(getattr(teacher, name))
        stayed = list(kept.get(name, range(whole)))
        if len(stayed) != count:
            raise InputError(
                f"{stage}: {name} has {count} blocks, expected {len(stayed)} of the original's {whole}; "
                "put prune-depth before it in the same recipe"
            )
        ends = [index - 1 for index in stayed[1:]] + [whole - 1]
        pairs += [(f"{name}.{i}", f"{name}.{end}") for i, end in enumerate(ends)]
    return pairs


def kept_parts(
    teacher: nn.Module, kept: Mapping[str, Sequence[int]]
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Takes from the tensors that a block of the teacher gives the channels that the student has kept.

    Args:
        teacher: the whole transformer.
        kept: the teacher's indices of the student's channels, by stream; of streams not named, all.
    """
    streams = [
        (group.part, list(kept[group.name]))
        for group in width_groups(teacher)
        if isinstance(group, ResidualGroup) and group.name in kept
    ]

    def narrow(parts: list[Tensor]) -> list[Tensor]:
        result = list(parts)
        for part, channels in streams:
            # A last block may give fewer: what nothing reads is not computed.
            for index in range(-len(parts), 0):
                if part in (None, index):
                    result[index] = result[index][..., channels]
        return result

    return narrow
