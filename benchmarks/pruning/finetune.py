"""Plain fine-tuning, the baseline of distillation: the loss that diffusion models are trained with.

Noise is added to an image, the model tells what was added (epsilon, v or the image, as its scheduler says).
No data set is there, so the images are those that the original draws at the end of the very trajectories that
distillation learns from. All else is that of distillation: steps, images a step, optimizer, schedule, average
of the weights. It sees new noise in every step, and the timesteps that sampling visits, no others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ditpress.calibrate.calls import Call
from ditpress.compress import Stage
from ditpress.compress.distill.stage import Distill
from ditpress.compress.stage import register_stage
from ditpress.errors import InputError
from ditpress.load.denoiser import Denoiser

LABEL_DROPOUT = 0.1  # as in the training of the model: guidance needs the answer without a class


@register_stage
class FineTune(Distill):
    """``distill`` on noised images and the diffusion target. Of class-conditional models on pixels."""

    kind: Literal["fine-tune"] = "fine-tune"  # type: ignore[assignment]

    @classmethod
    def like(cls, stage: Distill) -> FineTune:
        """The same budget; there is no original whose block outputs could be compared."""
        training = stage.training.model_copy(update={"features": 0.0})
        return cls(**{**dict(stage), "kind": "fine-tune", "training": training})

    def trajectories(self, original: Denoiser) -> tuple[list[Call], list[Tensor]]:
        """Noised images instead, as many calls as the training has room for."""
        seed, steps = self.first_seed + self.training.seed, self.sampling_steps or original.default_steps
        guidance = original.default_guidance if self.guidance is None else self.guidance
        images = original.sample(
            range(seed, seed + self.samples), steps=steps, guidance=guidance, batch_size=self.batch
        )
        return noised_calls(
            original.pipeline.scheduler,
            images * 2 - 1,
            [int(label) for label in original.conditions(self.samples)],
            original.transformer.config.num_embeds_ada_norm,
            steps=steps,
            rows=self.batch * (2 if guidance > 1 else 1),
            count=self.training.steps * self.training.calls,
            generator=torch.Generator().manual_seed(self.training.seed),
        )


def with_fine_tuning(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, with fine-tuning in the place of distillation."""
    return tuple(FineTune.like(stage) if isinstance(stage, Distill) else stage for stage in stages)


def noised_calls(
    scheduler: Any,
    images: Tensor,
    labels: Sequence[int],
    null_label: int,
    *,
    steps: int,
    rows: int,
    count: int,
    generator: torch.Generator,
) -> tuple[list[Call], list[Tensor]]:
    """``count`` calls of ``rows`` noised images each, and what the model should answer.

    Args:
        scheduler: of diffusers, with ``add_noise``.
        images: float [n, C, H, W] in -1..1.
        labels: of the images; ``null_label`` takes the place of ``LABEL_DROPOUT`` of them.
        steps: of the sampler, whose timesteps occur in turn.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    classes = torch.tensor(labels)
    calls, targets = [], []
    for index in range(count):
        timestep = scheduler.timesteps[index % steps]
        chosen = torch.randint(len(images), (rows,), generator=generator)
        noise = torch.randn(rows, *images.shape[1:], generator=generator)
        dropped = torch.rand(rows, generator=generator) < LABEL_DROPOUT
        times = timestep.repeat(rows)
        x = scheduler.add_noise(images[chosen], noise, times)
        calls.append(
            Call(
                float(timestep),
                {
                    "hidden_states": x,
                    "timestep": times,
                    "class_labels": torch.where(dropped, null_label, classes[chosen]),
                },
            )
        )
        targets.append(target(scheduler, images[chosen], noise, times))
    return calls, targets


def target(scheduler: Any, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a model with this scheduler predicts of ``images`` with ``noise`` added.

    Raises:
        InputError: a kind of prediction that is not known here.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(images, noise, timesteps)
    if kind == "sample":
        return images
    raise InputError(f"fine-tuning: prediction_type {kind} of the scheduler is not known here")
