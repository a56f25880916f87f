"""Who takes a smoothing factor: what produces a linear's input, exactly, or a multiplication at run time."""

from __future__ import annotations

from torch import Tensor, nn

from ditpress.kernels.transforms import ChannelScale
from ditpress.kernels.wrap import TransformedLinear
from ditpress.load.anatomy import SmoothGroup
from ditpress.load.modules import replace_module


def fold(transformer: nn.Module, group: SmoothGroup, factors: Tensor) -> None:
    """Multiply the input columns of the group's linears by ``factors`` [K] and divide their producer by them.

    ``modulate(h) = h * (1 + scale) + shift`` with scale and shift from the adaLN linear, so dividing its
    result by s means: shift rows ``w, b /= s``; scale rows ``w /= s`` and ``b -> (b + 1 - s) / s``. V rows:
    ``w, b /= s``.
    """
    for name in group.linears:
        _multiply(weight_of(transformer.get_submodule(name)), factors)
    source = transformer.get_submodule(group.source)
    weight, bias = weight_of(source), source.bias
    if group.absorb == "rows":
        _divide(weight, factors)
        if isinstance(bias, Tensor):
            _divide(bias, factors)
        return
    assert isinstance(bias, Tensor), "checked before"
    size = weight.shape[0] // group.chunks
    if group.shift_chunk is not None:
        rows = slice(group.shift_chunk * size, (group.shift_chunk + 1) * size)
        _divide(weight[rows], factors)
        _divide(bias[rows], factors)
    if group.scale_chunk is not None:
        rows = slice(group.scale_chunk * size, (group.scale_chunk + 1) * size)
        _divide(weight[rows], factors)
        bias[rows] = ((bias[rows].double() + 1.0 - factors) / factors).to(bias.dtype)


def put_online(transformer: nn.Module, name: str, factors: Tensor) -> None:
    """``linear(x)`` becomes ``linear(x * (1 / s))`` with columns multiplied by s."""
    linear = transformer.get_submodule(name)
    inverse = (1.0 / factors).float()
    # The columns undo what is multiplied at run time, so its rounding to float32 cancels.
    _multiply(weight_of(linear), 1.0 / inverse.double())
    replace_module(transformer, linear, TransformedLinear(ChannelScale(inverse), linear))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a float linear."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _multiply(weight: Tensor, factors: Tensor) -> None:
    """Multiply the columns of ``weight`` [N, K], in float64."""
    weight.copy_(weight.double() * factors)


def _divide(rows: Tensor, factors: Tensor) -> None:
    """Divide each row (or entry) of ``rows`` [K, ...] by its factor, in float64."""
    divisor = factors.reshape(-1, *([1] * (rows.dim() - 1)))
    rows.copy_(rows.double() / divisor)
