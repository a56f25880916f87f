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

from ditpress.compress.quantize.rtn import nearest_values, round_to_nearest, search_scale, split_groups
from ditpress.compress.stage import LayerFormat
from ditpress.kernels.arguments import folds
from ditpress.kernels.folding import fold_scales as fold
from ditpress.kernels.formats import Format, get_format
from ditpress.kernels.linear import Activation, QuantizedLinear, scale_dtype
from ditpress.kernels.packing import pack
from ditpress.kernels.reference import quantize_rows


class _Weight(torch.autograd.Function):
    """The packed layer's weight from latent weights and scales; gradients straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, format: Format, folded: bool) -> Tensor:
        rows, groups = scale.shape
        values = nearest_values(weight.view(rows, groups, -1), scale, format)
        ctx.save_for_backward(values.to(torch.int8))
        if folded:
            w8, s1 = fold(values.view(rows, -1), scale, format.codebook_tensor().to(scale.device))
            return w8.float() * s1
        return (values * scale.unsqueeze(-1)).view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad,) = grads
        (values,) = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None
        return grad, (grad.view(values.shape) * values).sum(dim=-1), None, None


class _Stored(torch.autograd.Function):
    """A scale as it is stored, in float32; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return scale.to(dtype).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Rows(torch.autograd.Function):
    """The packed layer's input: rounded per token, times its scale; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        q, a = quantize_rows(x)
        return q.mul_(a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def fake_weight(weight: Tensor, scale: Tensor, format: Format, fold_scales: bool = False) -> Tensor:
    """The weight that the packed layer would multiply by, with straight-through gradients.

    Args:
        weight: latent weights, float32 ``[N, K]``.
        scale: float32 ``[N, G]``; rounded to the type it is stored in (:func:`scale_dtype`) first.
        format: of single values from a fixed table.
        fold_scales: through 8-bit weights, as :mod:`ditpress.kernels.folding`; only matters for groups.

    Returns:
        float32 ``[N, K]``, bit-equal to ``QuantizedLinear.dequantize`` of the hardened layer.
    """
    dtype = scale_dtype(weight.shape[1] // scale.shape[1], weight.shape[1])
    stored = _Stored.apply(scale, dtype)
    return cast(Tensor, _Weight.apply(weight, stored, format, fold_scales and scale.shape[1] > 1))


def fake_activation(x: Tensor, activation: Activation) -> Tensor:
    """``x`` float32 ``[..., K]`` as the packed layer reads it, with straight-through gradients."""
    if activation == "none":
        return x
    return cast(Tensor, _Rows.apply(x.reshape(-1, x.shape[-1]))).view(x.shape)


def refitted_scale(weight: Tensor, scale: Tensor, format: Format) -> Tensor:
    """The least-squares scale ⟨w, v⟩ / ⟨v, v⟩ of the codes that ``scale`` gives, float32 ``[N, G]``.

    One step of the alternation between codes and scale, each the best for the other: the squared error
    never grows. A group whose codes are all zero keeps its scale.
    """
    rows, groups = scale.shape
    split = weight.view(rows, groups, -1)
    values = nearest_values(split, scale, format)
    energy = values.square().sum(dim=-1)
    return torch.where(
        energy > 0, (split * values).sum(dim=-1) / torch.where(energy > 0, energy, 1.0), scale.float()
    )


class FakeQuantizedLinear(nn.Module):
    """A linear in training: float parameters, and the arithmetic of the packed layer they will become.

    Parameters (N = out_features, K = in_features, G groups along K):
        weight: latent weights, float32 ``[N, K]``.
        scale: float32 ``[N, G]``.
        bias: float32 ``[N]`` or None.

    ``activation`` is of the packed layer: "int8" rounds the input per token, "none" leaves it.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, layer: LayerFormat) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.layer = layer
        self.format = get_format(layer.format)
        self.activation = cast(Activation, layer.activation)
        self.folds = folds(scale, layer.activation, layer.fold_scales)
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.scale = nn.Parameter(scale.detach().float().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())

    @classmethod
    def of(cls, linear: nn.Linear, layer: LayerFormat, name: str = "weight") -> FakeQuantizedLinear:
        """``linear`` with the scales of round to nearest; ``name`` is used in errors."""
        weight = split_groups(linear.weight, layer.group_size, name)
        dtype = scale_dtype(layer.group_size, linear.in_features)
        scale = search_scale(weight.cpu(), get_format(layer.format), dtype, name)
        return cls(linear.weight, scale.to(weight.device), linear.bias, layer)

    def effective_weight(self) -> Tensor:
        """The weight that it multiplies by, float32 ``[N, K]``."""
        return fake_weight(self.weight, self.scale, self.format, self.folds)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(fake_activation(x, self.activation), self.effective_weight(), self.bias)

    @torch.no_grad()
    def refit(self) -> None:
        """Replace the scale by that of least squares for the codes it gives now."""
        self.scale.copy_(refitted_scale(self.weight, self.scale, self.format))

    @torch.no_grad()
    def harden(self) -> QuantizedLinear:
        """The packed layer: the codes and scales that this one computes with."""
        dtype = scale_dtype(self.layer.group_size, self.in_features)
        scale = self.scale.to(dtype)
        split = self.weight.view(self.out_features, -1, self.layer.group_size)
        codes = round_to_nearest(split.cpu(), scale.float().cpu(), self.format)
        packed = pack(codes.view(self.out_features, self.in_features), self.format.entries)
        return QuantizedLinear(
            packed.to(scale.device),
            scale.clone(),
            self.format,
            self.in_features,
            None if self.bias is None else self.bias.detach().clone(),
            self.activation,
            fold_scales=self.layer.fold_scales,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, {self.layer}, "
            f"bias={self.bias is not None}"
        )
