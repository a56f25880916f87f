"""What stages that train on the original's own sampling trajectories have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from ditpress.calibrate.blocks import device_of
from ditpress.calibrate.calls import Call
from ditpress.calibrate.data import noised_calls
from ditpress.compress.distill.data import DataStage
from ditpress.compress.distill.trainer import Training, teacher_outputs
from ditpress.compress.distill.trajectories import record_trajectories

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser


class TrajectoryStage(DataStage):
    """A stage that draws images from noise with the original, and learns its answers on the way.

    With data it learns the original's answers to noised data instead.
    """

    first_seed: ClassVar[int]  # trajectories never start from the noise of anything else

    samples: int = Field(
        default=256,
        ge=1,
        description="images drawn from noise to train on, or taken from data; with too few, what is learned "
        "does not carry over",
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

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """Structure stays. Raises InputError for data that do not fit the model."""
        self.loaded_data(denoiser)

    def trajectories(self, original: Denoiser) -> tuple[list[Call], list[Tensor]]:
        """Calls of ``original``, recorded or at noised data, and its outputs."""
        settings: dict[str, Any] = {
            "samples": self.samples,
            "steps": self.sampling_steps or original.default_steps,
            "guidance": original.default_guidance if self.guidance is None else self.guidance,
            "seed": self.first_seed + self.training.seed,
            "batch_size": self.batch,
        }
        data = self.loaded_data(original)
        if data is None:
            return record_trajectories(original, **settings)
        calls = noised_calls(original, data, **settings)
        return calls, teacher_outputs(original.transformer, calls, device_of(original.transformer))
