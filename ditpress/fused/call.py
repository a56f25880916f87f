"""When a call may run fused, and one linear with what stands around it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.qlinear_fused import qlinear_fused


class Modulation(NamedTuple):
    """``layer_norm(x) * (1 + scale) + shift`` without affine; shift and scale ``[B, K]`` or ``[B, 1, K]``."""

    shift: Tensor
    scale: Tensor
    epsilon: float


class Gate(NamedTuple):
    """``gate * y + residual``; gate ``[B or 1, N]`` or ``[B or 1, 1, N]``, residual ``[B, T, N]``."""

    gate: Tensor
    residual: Tensor


def runs_plainly(module: nn.Module, x: Tensor) -> bool:
    """Whether this call is one that the fused ops compute: float32 rows on the CPU, nothing to differentiate.

    Train mode, gradients, autocast, other types and devices are left to diffusers' own code.
    """
    return (
        not module.training
        and not torch.is_grad_enabled()
        and fits(x)
        and x.dim() == 3
        and not torch.is_autocast_enabled("cpu")
    )


def fits(tensor: Tensor) -> bool:
    """float32 on the CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def unwatched(*modules: nn.Module | None) -> bool:
    """Whether nobody needs these modules to be called: no hooks, no ``forward`` put in their place."""
    return not any(
        module is not None
        and (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
        for module in modules
    )


def are_linears(*modules: nn.Module | None) -> bool:
    """Low-bit or float32 linears exactly (an adapter's layer is neither), at least one of them low-bit."""
    low_bit = [type(module) is QuantizedLinear for module in modules]
    return any(low_bit) and all(
        known or (type(module) is nn.Linear and fits(module.weight))
        for known, module in zip(low_bit, modules, strict=True)
    )


def rounds_input(module: nn.Module | None) -> bool:
    """Whether a linear rounds its input to few bits."""
    return isinstance(module, QuantizedLinear) and module.activation != "none"


def modulated(x: Tensor, modulation: Modulation) -> Tensor:
    """The normed and modulated ``x`` ``[B, T, K]``, on torch's own ops."""
    shift, scale = (rows.reshape(-1, 1, x.shape[-1]) for rows in modulation[:2])
    return F.layer_norm(x, x.shape[-1:], eps=modulation.epsilon) * (1 + scale) + shift


def linears(x: Tensor, modules: tuple[nn.Module, ...], modulation: Modulation | None) -> list[Tensor]:
    """What several linears make of the same ``x`` ``[B, T, K]``, modulated before if so asked."""
    if modulation is not None and not all(rounds_input(module) for module in modules):
        x, modulation = modulated(x, modulation), None  # once for all: only rounding remakes rows anyway
    return [linear(x, module, modulation=modulation) for module in modules]


def linear(
    x: Tensor,
    module: nn.Module,
    *,
    modulation: Modulation | None = None,
    gelu: bool = False,
    gate: Gate | None = None,
) -> Tensor:
    """A linear with its prologue and its epilogue, as :func:`ditpress.kernels.qlinear_fused.qlinear_fused`.

    Args:
        x: float32 ``[B, T, K]``.
        module: a ``QuantizedLinear``: one op; an ``nn.Linear``: the same on torch's own ops.
        modulation, gelu, gate: None or False leaves them out; not ``gelu`` and ``gate`` together.

    Returns:
        float32 ``[B, T, N]``.
    """
    if isinstance(module, QuantizedLinear):
        return qlinear_fused(
            x,
            module.codes,
            module.scale,
            module.codebook,
            module.bias,
            module.activation,
            module.fold_scales,
            table=module.table,
            shift=None if modulation is None else modulation.shift,
            modulation=None if modulation is None else modulation.scale,
            epsilon=0.0 if modulation is None else modulation.epsilon,
            gelu=gelu,
            gate=None if gate is None else gate.gate,
            residual=None if gate is None else gate.residual,
        )
    y = module(x if modulation is None else modulated(x, modulation))
    if gelu:
        y = F.gelu(y, approximate="tanh")
    return y if gate is None else gate.gate.reshape(-1, 1, y.shape[-1]) * y + gate.residual
