"""The stage ``tune``: a low-bit model learns on, inside its quantizers, to answer as the original did.

EfficientDM (He et al. 2024): the weight that is rounded is ``W0 + B A``, a low-rank update inside the
quantizer, trained with a straight-through estimator together with the scales to give the original's answers
on the original's own trajectories. At the end the update is merged: codes and scales are written anew, and no
branch is left. Here ``W0`` is the low-bit weight as it stands, whatever chose its codes (GPTQ, a search), in
the basis that smoothing and rotation have made; training starts exactly at the present model.

Codebooks of vectors learn with their assignments as they are (VQ4DiT, Deng et al. 2025, section 3.3).

EfficientDM also keeps a step size of the activations for every timestep (TALSQ). Here they are
rounded with the range of the token or group at hand, whatever the timestep: there is no step size to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, StrictBool
from torch import Tensor, nn

from ditpress.compress.distill.student_stage import StudentStage
from ditpress.compress.distill.trainer import Training
from ditpress.compress.quantize.fake import FakeQuantizedLinear
from ditpress.compress.quantize.power_of_two import constrained
from ditpress.compress.quantize.student import Rates, harden, parameter_groups, twins
from ditpress.compress.stage import RunContext, register_stage
from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.modules import replace_module

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser


class TuneTraining(Training):
    """Training inside quantizers. Rates are relative: of updates to the steps of a row's grid, of scales,
    codebooks and biases to their size."""

    steps: int = Field(default=300, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=5e-3, gt=0, description="peak of the schedule")


@register_stage
class Tune(StudentStage):
    """Train all low-bit layers of the stages before, whatever their formats, with the original as teacher."""

    kind: Literal["tune"] = "tune"
    first_seed: ClassVar[int] = 4_000_000
    not_after: ClassVar[frozenset[str]] = frozenset({"tune"})
    not_before: ClassVar[frozenset[str]] = frozenset(
        {"quantize", "ternary", "vq", "mixed", "smooth", "rotate", "subspace"}
        | {"prune-depth", "prune-width", "distill"}
    )
    float_copies: ClassVar[int] = (
        5  # original, latent weights and the weights they give, gradient, pipeline's
    )
    saved_copies: ClassVar[int] = 2

    rank: int | None = Field(
        default=32,
        ge=1,
        description="of the update of a layer's weights, 32 in EfficientDM; null: every weight by itself",
    )
    scales: StrictBool = Field(
        default=True,
        description="learn scales too; those that differ by powers of two only stay in any case",
    )
    vectors: StrictBool = Field(
        default=False, description="train float parameters of one dimension too: biases and norms that stayed"
    )
    samples: int = Field(default=64, ge=1, description="images drawn from noise to train on")
    bf16: bool = Field(
        default=False, description="on GPUs compute in bfloat16: it rounds the low-bit weights once more"
    )
    training: TuneTraining = TuneTraining()

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """Structure stays. Raises InputError where nothing is low-bit."""
        super().plan(denoiser, skeleton)
        if not any(isinstance(module, QuantizedLinear) for module in skeleton.modules()):
            raise InputError("tune: the model has no low-bit layer; put a stage such as quantize before it")

    def apply_in_run(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], context: RunContext
    ) -> dict[str, Any]:
        student = denoiser.transformer
        self.plan(denoiser, student)
        original = self.original_in(context)
        calls, targets = self.trajectories(original)
        others = [parameter for parameter in student.parameters() if parameter.dim() == 1]
        layers = twins(student, self.rank, torch.Generator().manual_seed(self.training.seed))
        free = {name: layer for name, layer in layers.items() if self.scales and not _pinned(layer)}
        rest = {name: layer for name, layer in layers.items() if name not in free}
        groups = [
            *parameter_groups(free, Rates(), learned_scales=True),
            *parameter_groups(rest, Rates(), learned_scales=False),
        ]
        if self.vectors:
            sized = ((parameter, float(parameter.square().mean().sqrt())) for parameter in others)
            groups += [{"params": [parameter], "rate": size} for parameter, size in sized if size > 0]
        facts = self.learn(student, original, groups, context, calls, targets, "tuning")
        for layer in layers.values():
            replace_module(student, layer, harden(layer))
        return facts


def _pinned(layer: nn.Module) -> bool:
    return isinstance(layer, FakeQuantizedLinear) and constrained(layer.scale.detach())
