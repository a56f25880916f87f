"""What stages that train on the original's own sampling trajectories have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor

from ditpress.calibrate.calls import Call
from ditpress.compress.distill.trainer import Training
from ditpress.compress.distill.trajectories import record_trajectories
from ditpress.compress.stage import Stage

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser


class TrajectoryStage(Stage):
    """A stage that draws images from noise with the original, and learns its answers on the way."""

    first_seed: ClassVar[int]  # trajectories never start from the noise of anything else

    samples: int = Field(
        default=256,
        ge=1,
        description="images drawn from noise to train on; with too few, what is learned does not carry over",
    )
    sampling_steps: int | None = Field(
        default=None, ge=1, description="denoising steps of these images; null: the model's own"
    )
    batch: int = Field(default=8, ge=1, description="images a recorded call; guidance doubles it")
    guidance: float | None = Field(default=None, description="guidance scale; null: the model's own")
    training: Training = Training()

    def passes(self, denoiser: Denoiser) -> float:
        training = self.training
        recorded = self.samples * (self.sampling_steps or denoiser.default_steps)
        each = 3 + (training.features > 0)  # forward, backward twice as much, the original's blocks
        return recorded + each * training.steps * training.calls * min(self.batch, self.samples)

    def trajectories(self, original: Denoiser) -> tuple[list[Call], list[Tensor]]:
        """Recorded calls of ``original``, and its outputs; see :func:`record_trajectories`."""
        return record_trajectories(
            original,
            samples=self.samples,
            steps=self.sampling_steps or original.default_steps,
            guidance=original.default_guidance if self.guidance is None else self.guidance,
            seed=self.first_seed + self.training.seed,
            batch_size=self.batch,
        )
