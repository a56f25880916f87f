"""What the output loses when one block alone is left out: the additive criterion of LAPTOP-Diff.

Zhang et al. 2024, "LAPTOP-Diff: Layer Pruning and Normalized Distillation for Compressing Diffusion Models",
section 3.2: E‖ε_pruned - ε‖² of single layers adds up to about that of all of them together, so the best
subset follows from single measurements. With blocks of one size their knapsack is a sort. TinyFusion finds
that the subset of least error is not the one that learns best (:mod:`.depth_learned`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ditpress.calibrate.blocks import device_of
from ditpress.calibrate.calibration import moved
from ditpress.calibrate.calls import Call
from ditpress.compress.distill.losses import output_energy
from ditpress.compress.distill.trainer import first, teacher_outputs
from ditpress.compress.prune.blocks import gated
from ditpress.progress import track


@torch.no_grad()
def output_errors(transformer: nn.Module, calls: Sequence[Call], names: Sequence[str]) -> dict[str, float]:
    """Mean square of the change of the output when a block is left out, in parts of the output's energy.

    Mean over the calls; the energy is that of the calls at the same timestep, so none of them dominates.

    Args:
        transformer: answers the calls; as before when this ends.
        calls: recorded calls.
        names: full names of the blocks, which are left out one at a time.
    """
    device = device_of(transformer)
    outputs = teacher_outputs(transformer, calls, device)
    energy = output_energy([call.timestep for call in calls], outputs)
    found = {}
    for name in track(names, "blocks left out"):
        total = 0.0
        with gated(transformer, [name], lambda _: 0.0):
            for call, expected in zip(calls, outputs, strict=True):
                output = first(transformer(**moved(call.kwargs, device))).cpu()
                total += float((output.double() - expected.double()).square().mean()) / energy[call.timestep]
        found[name] = total / len(calls)
    return found
