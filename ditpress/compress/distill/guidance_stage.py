"""The stage ``distill-guidance``: one forward pass a step instead of the two of classifier-free guidance.

AGD (Jensen & Sadat 2025, "Efficient Distillation of Classifier-Free Guidance using Adapters"): the student
learns the guided prediction from the conditional input alone, on the trajectories of guided sampling, which
are those that it will see. AGD freezes the model and trains adapters that are told the scale, so that one
adapter serves many scales and a small GPU is enough. Here the result must stay a plain transformer, to be
quantized and exported as any other: the weights themselves learn, for the one scale that the recipe names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ditpress.compress.distill.guidance import conditional, guided
from ditpress.compress.distill.stage import trained
from ditpress.compress.distill.student_stage import StudentStage
from ditpress.compress.distill.trainer import Training
from ditpress.compress.stage import RunContext, register_stage
from ditpress.errors import InputError
from ditpress.load.anatomy import Role
from ditpress.load.pipelines import build_in_guidance

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser


class GuidanceTraining(Training):
    """Training of all weights; blocks are not compared: those of the original hold no guided prediction."""

    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=2e-4, gt=0, description="peak of the schedule")
    ema: float | None = Field(
        default=0.99, gt=0, lt=1, description="decay of the average of the weights kept at the end"
    )


@register_stage
class DistillGuidance(StudentStage):
    """Build the guidance of a class-conditional model into its weights.

    The pipeline of the result knows that: it draws with one pass at this scale, and refuses others.
    """

    kind: Literal["distill-guidance"] = "distill-guidance"
    first_seed: ClassVar[int] = 5_000_000
    not_after: ClassVar[frozenset[str]] = frozenset(
        {"quantize", "ternary", "vq", "mixed", "smooth", "rotate", "subspace", "distill-guidance"}
    )
    # What follows must not learn from the original again, whose single passes are not guided.
    not_before: ClassVar[frozenset[str]] = frozenset({"distill", "tune"})
    float_copies: ClassVar[int] = 7  # original, student, gradient, two moments, average, and the pipeline's

    train: tuple[Role, ...] | None = Field(
        default=None, description="roles of the linears to train; null: every parameter of the model"
    )
    training: GuidanceTraining = GuidanceTraining()

    def builds_in(self, denoiser: Denoiser) -> float:
        return denoiser.default_guidance if self.guidance is None else self.guidance

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """Structure stays. Raises InputError for a scale that guides nothing, or a model without classes."""
        super().plan(denoiser, skeleton)
        if self.builds_in(denoiser) <= 1:
            raise InputError(
                f"distill-guidance.guidance {self.builds_in(denoiser):g}: there is no guidance at 1; "
                "give the scale that images are drawn with"
            )
        build_in_guidance(denoiser.pipeline, self.builds_in(denoiser))

    def apply_in_run(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], context: RunContext
    ) -> dict[str, Any]:
        student, scale = denoiser.transformer, self.builds_in(denoiser)
        self.plan(denoiser, student)
        config = student.config
        for call in context.calls:  # what follows is calibrated and judged on their conditional halves
            conditional(call, config.num_embeds_ada_norm)
        parameters = trained(student, denoiser.anatomy, self.train)
        original = self.original_in(context)
        calls, outputs = self.trajectories(original)
        facts = self.learn(
            student,
            original,
            [{"params": parameters}],
            context,
            [conditional(call, config.num_embeds_ada_norm) for call in calls],
            [guided(output, scale, config.in_channels) for output in outputs],
            "distillation of guidance",
        )
        return facts | {"built_in_guidance": scale}
