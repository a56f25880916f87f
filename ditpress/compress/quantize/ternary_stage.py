"""The stage ``ternary``: weights of three values, trained to answer as the float model does.

TerDiT (Lu et al. 2024) and 1.58-bit FLUX (Yang et al. 2024) show that a DiT survives ternary weights when it
is trained with them: rounding a finished model destroys it. Neither has published training code; this is
post-training and data-free: the float model's own sampling trajectories are the data, its answers the target.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from ditpress.compress.distill.trainer import Training, distill
from ditpress.compress.distill.trajectory_stage import TrajectoryStage
from ditpress.compress.quantize.grid import check_format
from ditpress.compress.quantize.layer import LayerPlan, empty_layer
from ditpress.compress.quantize.spec import LowRankSpec, WeightSpec
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.quantize.student import (
    EPS,
    Rates,
    fake_layers,
    harden,
    parameter_groups,
    refit,
    start_norms,
)
from ditpress.compress.stage import register_stage
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format
from ditpress.kernels.wrap import NormedLinear
from ditpress.load.anatomy import Role
from ditpress.load.modules import replace_module

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.load.denoiser import Denoiser


START_CALLS = 64  # evenly over the trajectories, that the start is fitted on


class TernaryTraining(Training):
    """Training of ternary weights. Rates are parts of the size (rms) of what they change."""

    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    learning_rate: float = Field(
        default=0.01, gt=0, description="peak of the schedule, as a part of the rms of a layer's weights"
    )
    features: float = Field(
        default=0.5, ge=0, description="weight of the error of block outputs beside that of the output"
    )


@register_stage
class Ternary(TrajectoryStage):
    """Ternary weights with least-squares scales, then self-distillation with a straight-through estimator.

    All linears of the blocks and the modulation become ternary; embedders and the last layer stay. The model
    starts from ternary weights by ``rounding`` (gptq: of least error of each layer's output), learns the
    original's answers on the original's own trajectories, and is then packed: the packed layers compute with
    the very bits that were trained.
    """

    kind: Literal["ternary"] = "ternary"
    first_seed: ClassVar[int] = 2_000_000
    not_after: ClassVar[frozenset[str]] = frozenset({"quantize", "ternary"})

    weights: WeightSpec = WeightSpec(format="ternary", group="channel")
    activations: Literal["int8", "none"] = Field(
        default="int8", description="int8: per token, dynamic, symmetric; none: weight-only"
    )
    modulation: WeightSpec = WeightSpec(format="ternary", group="channel")
    keep: tuple[Role, ...] = Field(
        default=(Role.EMBEDDER, Role.FINAL, Role.OTHER), description="roles that stay as they are"
    )
    skip: tuple[str, ...] = Field(
        default=(), description="layers that stay as they are, by name pattern (* and ?)"
    )
    norm: bool = Field(default=True, description="RMSNorm after the modulation linears (TerDiT, section 3.3)")
    scales: Literal["learned", "least-squares"] = Field(
        default="learned",
        description="learned: parameters, as in TerDiT; least-squares: those of the latent weights after "
        "every step",
    )
    low_rank: int | None = Field(
        default=None,
        ge=1,
        description="rank of an int8 branch beside every ternary linear but modulation; null: none",
    )
    training: TernaryTraining = TernaryTraining()

    def plans(self, denoiser: Denoiser, transformer: nn.Module) -> dict[str, LayerPlan]:
        """What every linear becomes that is trained; see the stage ``quantize``, also for errors."""
        for setting, spec in (("weights", self.weights), ("modulation", self.modulation)):
            check_format(get_format(spec.format))
            if spec.scale_ratios != "free":
                raise InputError(f"ternary.{setting}: scales move freely in training; leave scale_ratios out")
        branch = None if self.low_rank is None else LowRankSpec(rank=self.low_rank, share=1.0, whiten=False)
        rounding = Quantize(
            weights=self.weights,
            activations=self.activations,
            modulation=self.modulation,
            low_rank=branch,
            keep=self.keep,
            skip=self.skip,
        )
        return rounding.plans(denoiser, transformer)

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        super().plan(denoiser, skeleton)
        roles = denoiser.anatomy.linears(skeleton)
        for name, plan in self.plans(denoiser, skeleton).items():
            linear = cast(nn.Linear, skeleton.get_submodule(name))
            made = empty_layer(linear, plan)
            if self.norm and roles[name] is Role.MODULATION:
                made = NormedLinear.empty(made, "meta", eps=EPS)
            replace_module(skeleton, linear, made)

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        teacher = denoiser.transformer
        plans = self.plans(denoiser, teacher)
        student = copy.deepcopy(teacher).requires_grad_(False)
        calls, targets = self.trajectories(denoiser)
        some = calls[:: max(1, len(calls) // START_CALLS)]
        layers = fake_layers(denoiser.with_transformer(student), plans, some)
        if self.norm:
            roles = denoiser.anatomy.linears(teacher)
            start_norms(student, teacher, layers, [n for n in layers if roles[n] is Role.MODULATION], some)
        blocks = [
            f"{block_list}.{index}"
            for block_list in denoiser.anatomy.block_lists(teacher)
            for index in range(len(getattr(teacher, block_list)))
        ]
        distill(
            student,
            teacher,
            calls,
            self.training,
            parameter_groups(layers, Rates(), learned_scales=self.scales == "learned"),
            targets=targets,
            blocks=[(name, name) for name in blocks],
            after_step=partial(refit, layers) if self.scales == "least-squares" else None,
            description="ternary distillation",
        )
        for name, layer in layers.items():
            replace_module(teacher, teacher.get_submodule(name), harden(layer))
