"""Fake quantization: float layers that compute with the weights and inputs that the packed layer will have.

A latent float weight w and a scale s give the codes and the weight by the functions that pack a layer
(:func:`~ditpress.compress.quantize.rtn.round_to_nearest`, :func:`ditpress.kernels.reference.dequantize`,
:mod:`ditpress.kernels.folding`), so hardening after training changes no bit of either. Rounding has no useful
derivative; the straight-through estimator (Bengio, Léonard & Courville 2013) takes it as the identity:

    W = s * v(w / s)          v: the nearest table entry
    dL/dw = dL/dW             (TerDiT's choice for ternary weights: no clipping at the ends of the table)
    dL/ds = sum_group dL/dW * v    (the scale of the codes as they are, TerDiT's learned alpha)
    dL/dx = dL/dx_q           (activations)
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditpress.compress.quantize.fitted import FittedWeight
from ditpress.compress.quantize.grid import grid_of
from ditpress.compress.quantize.rtn import nearest_values, round_to_nearest
from ditpress.kernels.activations import Activation, fake_quantize
from ditpress.kernels.arguments import folds
from ditpress.kernels.folding import fold_scales as fold
from ditpress.kernels.formats import Format
from ditpress.kernels.linear import QuantizedLinear, scale_dtype
from ditpress.kernels.packing import pack


class _Weight(torch.autograd.Function):
    """The packed layer's weight from latent weights and scales; gradients straight through."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, format: Format, table: Tensor | None, folded: bool
    ) -> Tensor:
        rows, groups = scale.shape
        values = nearest_values(weight.view(rows, groups, -1), scale, format, table)
        ctx.save_for_backward(values.to(torch.int8))
        if folded:
            w8, s1 = fold(values.view(rows, -1), scale, format.codebook_tensor().to(scale.device), table)
            return w8.float() * s1
        return (values * scale.unsqueeze(-1)).view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (grad,) = grads
        (values,) = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None
        return grad, (grad.view(values.shape) * values).sum(dim=-1), None, None, None


class _Stored(torch.autograd.Function):
    """A scale as it is stored, in float32; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return scale.to(dtype).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Input(torch.autograd.Function):
    """The packed layer's input: rounded, times its scale; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, group_size: int) -> Tensor:
        return fake_quantize(x, activation, group_size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_weight(
    weight: Tensor,
    scale: Tensor,
    format: Format,
    table: Tensor | None = None,
    fold_scales: bool = False,
) -> Tensor:
    """The weight that the packed layer would multiply by, with straight-through gradients.

    Args:
        weight: latent weights, float32 ``[N, K]``.
        scale: float32 ``[N, G]``; rounded to the type it is stored in
            (:func:`ditpress.kernels.linear.scale_dtype`) first.
        format: of single values from fixed tables.
        table: which of them each row uses, uint8 ``[N]``, where the format has several.
        fold_scales: through 8-bit weights, as :mod:`ditpress.kernels.folding`; only matters for groups.

    Returns:
        float32 ``[N, K]``, bit-equal to ``QuantizedLinear.dequantize`` of the hardened layer.
    """
    dtype = scale_dtype(weight.shape[1] // scale.shape[1], weight.shape[1])
    stored = _Stored.apply(scale, dtype)
    return cast(Tensor, _Weight.apply(weight, stored, format, table, fold_scales and scale.shape[1] > 1))


def fake_activation(x: Tensor, activation: Activation, group_size: int) -> Tensor:
    """``x`` float32 ``[..., K]`` as the packed layer reads it, with straight-through gradients.

    ``group_size``: weights that share a scale, for the activation formats with a scale per group.
    """
    if activation == "none":
        return x
    return cast(Tensor, _Input.apply(x, activation, group_size))


def refitted_scale(weight: Tensor, scale: Tensor, format: Format, table: Tensor | None = None) -> Tensor:
    """The least-squares scale ⟨w, v⟩ / ⟨v, v⟩ of the codes that ``scale`` gives, float32 ``[N, G]``.

    One step of the alternation between codes and scale, each the best for the other: the squared error
    never grows. A group whose codes are all zero keeps its scale.
    """
    rows, groups = scale.shape
    split = weight.view(rows, groups, -1)
    values = nearest_values(split, scale, format, table)
    energy = values.square().sum(dim=-1)
    solved = (split * values).sum(dim=-1) / torch.where(energy > 0, energy, 1.0)
    return torch.where(energy > 0, solved, scale.float())


class LowRankUpdate(nn.Module):
    """A change ``step * up @ down`` of latent weights, inside the quantizer: LoRA as in EfficientDM.

    He et al. 2024, "EfficientDM" (QALoRA): it is rounded with the weight, so it can be merged. ``step``
    makes it scale-aware, as there: ``up`` counts in steps of the row's grid, and one learning rate fits
    layers of every size.

    Parameters: up float32 ``[N, r]``, zero at first; down float32 ``[r, K]``, N(0, 1 / r).
    Buffer: step float32 ``[N, 1]``.
    """

    step: Tensor

    def __init__(self, step: Tensor, columns: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        down = torch.randn(rank, columns, generator=generator) / rank**0.5
        self.up = nn.Parameter(step.new_zeros(len(step), rank), requires_grad=False)
        self.down = nn.Parameter(down.to(step.device), requires_grad=False)
        self.register_buffer("step", step)

    def forward(self) -> Tensor:
        return self.step * (self.up @ self.down)


class FakeQuantizedLinear(nn.Module):
    """A linear in training: float parameters, and the arithmetic of the packed layer they will become.

    Parameters (N = out_features, K = in_features, G groups along K):
        weight: latent weights, float32 ``[N, K]``.
        scale: float32 ``[N, G]``.
        bias: float32 ``[N]`` or None.
    Buffer: table, uint8 ``[N]`` or None.
    Child: update, what :meth:`open_update` puts on the latent weights, or None.

    Args:
        weight, bias: where the parameters start.
        fitted: the stored weight that training starts from; its scales, format and tables.
        activation, fold_scales: of the packed layer.
    """

    bias: nn.Parameter | None
    table: Tensor | None
    update: LowRankUpdate | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        fitted: FittedWeight,
        activation: Activation,
        fold_scales: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.group_size = self.in_features // fitted.scale.shape[1]
        self.format = fitted.format
        self.activation = activation
        self.fold_scales = fold_scales
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.scale = nn.Parameter(fitted.scale.detach().float().to(weight.device, copy=True))
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self.register_buffer("table", None if fitted.table is None else fitted.table.to(weight.device))
        self.update = None

    def open_update(self, rank: int, generator: torch.Generator) -> None:
        """Put a low-rank update on the latent weights; nothing changes before it is trained."""
        grid = grid_of(self.format)
        gap = (grid.high - grid.low) / (grid.size - 1)
        step = gap * self.scale.detach().abs().mean(dim=1, keepdim=True)
        self.update = LowRankUpdate(step, self.in_features, rank, generator)

    @torch.no_grad()
    def merge(self) -> None:
        """The low-rank update becomes part of the latent weights."""
        if self.update is not None:
            self.weight.copy_(self.latent())
            self.update = None

    def latent(self) -> Tensor:
        """The weights that are rounded, float32 ``[N, K]``."""
        return self.weight if self.update is None else self.weight + self.update()

    def effective_weight(self) -> Tensor:
        """The weight that it multiplies by, float32 ``[N, K]``."""
        folded = folds(self.scale, self.activation, self.fold_scales)
        return fake_weight(self.latent(), self.scale, self.format, self.table, folded)

    def forward(self, x: Tensor) -> Tensor:
        seen = fake_activation(x, self.activation, self.group_size)
        return F.linear(seen, self.effective_weight(), self.bias)

    @torch.no_grad()
    def refit(self) -> None:
        """Replace the scale by that of least squares for the codes it gives now."""
        self.scale.copy_(refitted_scale(self.latent(), self.scale, self.format, self.table))

    @torch.no_grad()
    def harden(self) -> QuantizedLinear:
        """The packed layer: the codes and scales that this one computes with."""
        self.merge()
        scale = self.scale.to(scale_dtype(self.group_size, self.in_features))
        split = self.weight.view(self.out_features, -1, self.group_size)
        table = None if self.table is None else self.table.cpu()
        codes = round_to_nearest(split.cpu(), scale.float().cpu(), self.format, table)
        packed = pack(codes.view(self.out_features, self.in_features), self.format.entries)
        return QuantizedLinear(
            packed.to(scale.device),
            scale.clone(),
            self.format,
            self.in_features,
            None if self.bias is None else self.bias.detach().clone(),
            self.activation,
            fold_scales=self.fold_scales,
            table=None if self.table is None else self.table.clone(),
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, format={self.format.name}, "
            f"group_size={self.group_size}, activation={self.activation}, bias={self.bias is not None}, "
            f"fold_scales={self.fold_scales}"
        )
