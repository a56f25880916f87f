"""What a student is judged by: its output, and the outputs of its blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def output_energy(timesteps: Sequence[float], outputs: Sequence[Tensor]) -> dict[float, float]:
    """Mean square of the teacher's outputs at each timestep: what the error there is divided by.

    Errors then count in parts of the signal, and no timestep dominates. Silent timesteps count as 1.
    """
    sums: dict[float, float] = defaultdict(float)
    counts: dict[float, int] = defaultdict(int)
    for timestep, output in zip(timesteps, outputs, strict=True):
        sums[timestep] += float(output.double().square().sum())
        counts[timestep] += output.numel()
    return {timestep: sums[timestep] / counts[timestep] or 1.0 for timestep in sums}


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference over the mean square of the teacher, a scalar.

    The feature term of LAPTOP-Diff (Zhang et al. 2024, section 3.3), normalised by the teacher's feature norm
    so that no block dominates.
    """
    return (student - teacher).square().mean() / teacher.square().mean().clamp(min=1e-12)


def masked_error(student: Tensor, teacher: Tensor, sigmas: float = 2.0) -> Tensor:
    """:func:`relative_error` of the entries that are outliers in neither tensor, a scalar.

    The masked feature loss of TinyFusion (Fang et al. 2025, section 3.4): a DiT has a few massive activations
    that a small student reaches only at the cost of all others. There each tensor is multiplied by its own
    mask, which pulls the student to zero where the teacher alone has an outlier; here both are multiplied by
    both masks. And the error is relative, so that no block dominates.
    """
    mask = typical(student.detach(), sigmas) & typical(teacher, sigmas)
    kept = mask.to(teacher.dtype)
    difference = ((student - teacher) * kept).square().sum()
    return difference / (teacher * kept).square().sum().clamp(min=1e-12)


def typical(x: Tensor, sigmas: float) -> Tensor:
    """Where ``x`` [B, ...] is closer than ``sigmas`` standard deviations to its mean; both of each sample."""
    rest = tuple(range(1, x.dim()))
    x = x.float()
    mean, deviation = x.mean(rest, keepdim=True), x.std(rest, correction=0, keepdim=True)
    return (x - mean).abs() < sigmas * deviation


class Features:
    """The outputs of some modules in the latest forward pass, a list of tensors for each, in their order."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._found: dict[str, list[Tensor]] = {}
        self._names = list(names)
        self._handles = [model.get_submodule(name).register_forward_hook(self._keep(name)) for name in names]

    def take(self) -> list[list[Tensor]]:
        """What was seen since the last call; the references are given up."""
        found = [self._found[name] for name in self._names]
        self._found = {}
        return found

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            parts = output if isinstance(output, tuple | list) else (output,)
            self._found[name] = [part for part in parts if isinstance(part, Tensor)]

        return hook
