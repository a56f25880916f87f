"""Trajectories to learn from: the teacher's own sampling, from noise, with its answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ditpress.calibrate.calls import Call, record_calls
from ditpress.compress.distill.trainer import first
from ditpress.load.denoiser import Denoiser


def record_trajectories(
    denoiser: Denoiser,
    *,
    samples: int,
    steps: int,
    guidance: float,
    seed: int,
    batch_size: int,
) -> tuple[list[Call], list[Tensor]]:
    """Draw images with the seeds ``seed``, ``seed + 1``, …; every call, and the output it had, on the CPU.

    ``batch_size`` images are in a call (with guidance twice as many rows): what a training step sees at once.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        outputs.append(first(output).detach().float().to("cpu", copy=True))

    handle = denoiser.transformer.register_forward_hook(keep)
    try:
        calls = record_calls(
            denoiser,
            samples=samples,
            steps=steps,
            guidance=guidance,
            seed=seed,
            batch_size=batch_size,
            description="trajectories",
        )
    finally:
        handle.remove()
    return calls, outputs
