"""The trainable twin of a vector-quantized linear: codebook, scales, bias and candidate assignments learn.

VQ4DiT (Deng et al. 2025, section 3.2): every sub-vector keeps its n nearest codewords as candidates, and is
their mean under ratios ``r = softmax(logits)``: ``W = sum_i r_i C[a_i]``. Ratios that a codeword has won are
frozen, and when nearly all are, the layer is hardened: each sub-vector is one codeword again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditpress.compress.quantize.fitted import FittedWeight
from ditpress.compress.quantize.kmeans import nearest_few
from ditpress.compress.quantize.vector import LARGEST, points_of
from ditpress.kernels.linear import Activation, QuantizedLinear
from ditpress.kernels.packing import pack

FROZEN_RATIO = 0.99  # VQ4DiT, section 3.3: a candidate with more has won
LOGIT_OF_CERTAINTY = 10.0  # distances as unequal as e^10 say no more than that; also where one is 0


def candidate_logits(distances: Tensor) -> Tensor:
    """Logits whose softmax is proportional to 1 / distance: ``log(d_last / d_i)``.

    VQ4DiT's released code. Args: distances [..., n], not negative, in any order; the result is finite.
    """
    last = distances[..., -1:]
    ratio = last / distances.where(distances > 0, 1.0)
    logits = ratio.clamp(min=torch.finfo(distances.dtype).tiny).log()
    certain = (distances == 0) & (last > 0)
    return (
        logits.masked_fill(distances == last, 0.0)
        .masked_fill(certain, LOGIT_OF_CERTAINTY)
        .clamp(-LOGIT_OF_CERTAINTY, LOGIT_OF_CERTAINTY)
    )


def ratio_penalty(ratios: Tensor) -> Tensor:
    """``n mean r (1 - r)`` of ratios [M, n]: zero where every sub-vector has decided (VQ4DiT's code)."""
    return ratios.shape[-1] * (ratios * (1.0 - ratios)).mean()


class _RoundStraightThrough(torch.autograd.Function):
    """Whole numbers in -127..127, with the gradient of the identity inside that range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round().clamp(-LARGEST, LARGEST)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class VectorLinear(nn.Module):
    """``y = x Wᵀ + b`` with ``W = scale * codebook[codes]`` in the very bits of ``QuantizedLinear``.

    Parameters:
        codebook: float32 [E, d] in units of the int8 that is stored, rounded in the forward.
        scale: float32 [N, 1].
        bias: float32 [N] or None.
        logits: float32 [N K / d, n] while there are candidates, else None.

    Buffers:
        codes: int32 [N K / d], or [N K / d, n] with candidates; nearest first.
        frozen: bool [N K / d] or None: sub-vectors whose ratio is decided.
    """

    codes: Tensor
    frozen: Tensor | None
    bias: nn.Parameter | None
    logits: nn.Parameter | None

    def __init__(self, weight: FittedWeight, bias: Tensor | None, activation: Activation) -> None:
        assert weight.codebook is not None, "no vector format"
        super().__init__()
        self.format = weight.format
        self.activation: Activation = activation
        self.out_features = weight.codes.shape[0]
        self.in_features = weight.codes.shape[1] * weight.format.vector_length
        self.codebook = nn.Parameter(weight.codebook.float())
        self.scale = nn.Parameter(weight.scale.clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self.logits = None
        self.register_buffer("codes", weight.codes.flatten().int())
        self.register_buffer("frozen", None)

    def open_candidates(self, weight: Tensor, importance: Tensor, count: int) -> None:
        """Give every sub-vector its ``count`` nearest codewords, ratios proportional to 1 / distance.

        Args:
            weight: float32 [N, K] that the sub-vectors should stand for.
            importance: [K], see :func:`ditpress.compress.quantize.vector.channel_weights`.
        """
        with torch.no_grad():
            pull, pressure = points_of(weight, self.scale.detach(), importance, self.format.vector_length)
            codes, cost = nearest_few(pull, pressure, self.integers(), count)
            own = (pull.square() / pressure.where(pressure > 0, 1.0)).sum(dim=1, keepdim=True)
            distances = (cost + own).clamp_(min=0.0).sqrt_()
        self.codes = codes.int()
        self.logits = nn.Parameter(candidate_logits(distances))
        self.frozen = torch.zeros(len(codes), dtype=torch.bool)

    def integers(self) -> Tensor:
        """The codebook as it will be stored, float32 [E, d], with a straight-through gradient."""
        return _RoundStraightThrough.apply(self.codebook)

    def ratios(self) -> Tensor:
        """Softmax of the logits [N K / d, n], exactly 0 and 1 where frozen."""
        assert self.logits is not None, "no candidates are open"
        assert self.frozen is not None
        ratios = self.logits.softmax(dim=1)
        decided = F.one_hot(self.logits.argmax(dim=1), self.logits.shape[1]).to(ratios.dtype)
        return torch.where(self.frozen.unsqueeze(1), decided, ratios)

    def weight(self, ratios: Tensor | None = None) -> Tensor:
        """The weight [N, K]; ``ratios``: those of :meth:`ratios`, if they are at hand."""
        vectors = F.embedding(self.codes, self.integers())
        if self.logits is not None:
            ratios = self.ratios() if ratios is None else ratios
            vectors = (vectors * ratios.unsqueeze(-1)).sum(dim=1)
        return vectors.view(self.out_features, self.in_features) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.bias)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups without the logits; "rate" is the size of the parameters, so that one relative
        learning rate fits all of them. A bias counts like the outputs of a normalised layer: 1."""
        with torch.no_grad():
            found: list[dict[str, Any]] = [
                {"params": [parameter], "rate": float(parameter.square().mean().sqrt()) or 1.0}
                for parameter in (self.codebook, self.scale)
            ]
        return found + ([] if self.bias is None else [{"params": [self.bias], "rate": 1.0}])

    def freeze(self) -> float:
        """Freeze every sub-vector with a ratio above ``FROZEN_RATIO``; the share that is frozen."""
        assert self.logits is not None, "no candidates are open"
        assert self.frozen is not None
        with torch.no_grad():
            self.frozen |= self.logits.softmax(dim=1).amax(dim=1) > FROZEN_RATIO
        return float(self.frozen.float().mean())

    def harden(self) -> None:
        """Every sub-vector becomes the candidate with the largest ratio; nothing is left to decide."""
        if self.logits is None:
            return
        winner = self.logits.detach().argmax(dim=1, keepdim=True)
        self.codes = self.codes.gather(1, winner).squeeze(1)
        self.logits, self.frozen = None, None

    def quantized(self) -> QuantizedLinear:
        """The layer that is stored, with the same weight bit for bit."""
        self.harden()
        with torch.no_grad():
            codes = self.codes.to(torch.uint8).view(self.out_features, -1)
            return QuantizedLinear(
                pack(codes, self.format.entries),
                self.scale.detach().clone(),
                self.format,
                self.in_features,
                None if self.bias is None else self.bias.detach().clone(),
                self.activation,
                codebook=self.integers().to(torch.int8),
            )
