"""SmoothQuant: move the range of activation outliers into the weights, without changing the function.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML
2023, eq. 4. In a DiT the factor is absorbed by what produces the linear's input: the adaLN modulation (shift
and scale rows) or the V projection in front of the attention's output projection, so nothing is added to the
graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.calibrate.calibration import Want
from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError, StageError

if TYPE_CHECKING:
    from ditpress.load.anatomy import SmoothGroup
    from ditpress.load.denoiser import Denoiser

STATISTIC = "input_absmax"
SMALLEST_FACTOR = 1e-4  # a channel that is nearly silent in calibration must not blow up its producer


def smoothing_factors(input_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (eq. 4), float64 [K].

    Args:
        input_absmax: largest |x| of each input channel over tokens, batch and all timesteps, [K].
        weight_absmax: largest |w| of each input channel over the outputs of all linears that read it, [K].
        alpha: how much of the difficulty moves to the weights, 0..1.

    A channel without any signal or without any weight keeps the factor 1.
    """
    inputs, weights = input_absmax.double(), weight_absmax.double()
    dead = (inputs == 0) | (weights == 0)
    factors = inputs.pow(alpha) / weights.pow(1.0 - alpha)
    return torch.where(dead, torch.ones_like(factors), factors.clamp(min=SMALLEST_FACTOR))


@register_stage
class Smooth(Stage):
    """Plain SmoothQuant with one alpha for all layers."""

    kind: Literal["smooth"] = "smooth"
    not_after: ClassVar[frozenset[str]] = frozenset({"smooth", "quantize"})  # folding needs float weights

    alpha: float = Field(
        default=0.5, ge=0.0, le=1.0, description="migration strength, eq. 4; 0.5 in the paper"
    )

    def wants(self, denoiser: Denoiser) -> list[Want]:
        """Input range of one linear of every group: the others read the same input."""
        groups = denoiser.anatomy.smooth_groups(denoiser.transformer)
        return [Want(group.linears[0], STATISTIC) for group in groups]

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        transformer = denoiser.transformer
        groups = denoiser.anatomy.smooth_groups(transformer)
        for group in groups:
            _check(transformer, group, statistics[Want(group.linears[0], STATISTIC)])
        with torch.no_grad():
            for group in groups:
                linears = [transformer.get_submodule(name) for name in group.linears]
                weight_absmax = torch.stack([_weight(linear).abs().amax(dim=0) for linear in linears]).amax(
                    dim=0
                )
                absmax = statistics[Want(group.linears[0], STATISTIC)].to(weight_absmax.device)
                fold(transformer, group, smoothing_factors(absmax, weight_absmax, self.alpha))


def fold(transformer: nn.Module, group: SmoothGroup, factors: Tensor) -> None:
    """Multiply the input columns of the group's linears by ``factors`` [K] and divide their producer by them.

    ``modulate(h) = h * (1 + scale) + shift`` with scale and shift from the adaLN linear, so dividing its
    result by s means: shift rows ``w, b /= s``; scale rows ``w /= s`` and ``b -> (b + 1 - s) / s``. V rows:
    ``w, b /= s``.
    """
    for name in group.linears:
        weight = _weight(transformer.get_submodule(name))
        weight.copy_(weight.double() * factors)
    source = transformer.get_submodule(group.source)
    weight, bias = _weight(source), source.bias
    if group.absorb == "rows":
        _divide(weight, factors)
        if isinstance(bias, Tensor):
            _divide(bias, factors)
        return
    if not isinstance(bias, Tensor):
        raise StageError(
            f"{group.source} has no bias, which must absorb the smoothing; leave the stage smooth out"
        )
    size = weight.shape[0] // group.chunks
    if group.shift_chunk is not None:
        rows = slice(group.shift_chunk * size, (group.shift_chunk + 1) * size)
        _divide(weight[rows], factors)
        _divide(bias[rows], factors)
    if group.scale_chunk is not None:
        rows = slice(group.scale_chunk * size, (group.scale_chunk + 1) * size)
        _divide(weight[rows], factors)
        bias[rows] = ((bias[rows].double() + 1.0 - factors) / factors).to(bias.dtype)


def _check(transformer: nn.Module, group: SmoothGroup, absmax: Tensor) -> None:
    """Everything that can be wrong with a group, before the first weight changes."""
    for name in (*group.linears, group.source):
        if not bool(torch.isfinite(_weight(transformer.get_submodule(name))).all()):
            raise InputError(
                f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
            )
    if not bool(torch.isfinite(absmax).all()):
        raise StageError(
            f"the inputs of {group.linears[0]} overflow during calibration; check the checkpoint"
        )


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _divide(rows: Tensor, factors: Tensor) -> None:
    """Divide each row (or entry) of ``rows`` [K, ...] by its factor, in float64."""
    divisor = factors.reshape(-1, *([1] * (rows.dim() - 1)))
    rows.copy_(rows.double() / divisor)
