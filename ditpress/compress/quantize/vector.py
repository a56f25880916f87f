"""Vector quantization of a weight: ``W[n, k] ~ scale[n] * codebook[code[n, k // d]][k % d]``.

VQ4DiT (Deng et al. 2025, section 3.1) gives every layer a codebook over sub-vectors of d weights along the
input dimension. Here rows are first divided by a scale, so that one codebook fits rows of every size, and the
codebook is int8, as the integer kernels read it. The squared error may weigh input channels by their second
moment: ``sum h_k (W - Ŵ)²`` is then the error of the layer's output for inputs without correlation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ditpress.compress.quantize.fitted import FittedWeight
from ditpress.compress.quantize.kmeans import lloyd, nearest, plus_plus
from ditpress.compress.quantize.refit import refit_scale
from ditpress.compress.quantize.spec import GptqSpec
from ditpress.compress.quantize.vector_gptq import vector_gptq
from ditpress.errors import InputError
from ditpress.kernels.formats import Format

# Sub-vectors per codeword that k-means learns from: what faiss.Clustering uses at most
# (max_points_per_centroid, Douze et al. 2024). More change the codebook by less than its rounding to int8.
POINTS_PER_CODEWORD = 256
ITERATIONS = 100  # of Lloyd at most; VQ4DiT's released code
REFITS = 20  # rounds of scales and assignments under the rounded codebook at most
STABLE = 5e-3  # part of the codes that may still change when these rounds end
DAMPING = 0.01  # of the mean second moment, as GPTQ's percdamp: silent channels still count a little
LARGEST = 127  # -128 has no counterpart: kernels negate entries


def check_vectors(rows: int, columns: int, format: Format, name: str) -> None:
    """Refuse a layer that the format cannot hold, by its shape alone.

    Raises:
        InputError: d does not divide K, or the layer has fewer sub-vectors than the format has codewords;
            names the layer.
    """
    length = format.vector_length
    if columns % length:
        raise InputError(
            f"{name}: format {format.name} needs rows of whole sub-vectors of {length} weights, but K = "
            f"{columns}; skip this layer"
        )
    if rows * columns // length < format.entries:
        raise InputError(
            f"{name}: a codebook of {format.entries} codewords is larger than the layer, which has "
            f"{rows * columns // length} sub-vectors of {length} weights; skip this layer"
        )


def channel_weights(second_moment: Tensor | None, columns: int) -> Tensor:
    """What an error in each input channel costs: float32 [K], mean 1 before damping.

    Args:
        second_moment: of the layer's input, the mean of ``x xᵀ`` [K, K] or its diagonal [K]; None: all equal.
    """
    if second_moment is None:
        return torch.ones(columns)
    diagonal = second_moment.diagonal() if second_moment.dim() == 2 else second_moment
    mean = float(diagonal.double().mean())
    if mean <= 0.0:
        return torch.ones(columns)
    return (diagonal.double() / mean + DAMPING).float()


def initial_scale(weight: Tensor) -> Tensor:
    """Root mean square of every row, float32 [N, 1]; 1 for a row of zeros."""
    rms = weight.square().mean(dim=1, keepdim=True).sqrt()
    return rms.where(rms > 0, 1.0)


def points_of(weight: Tensor, scale: Tensor, importance: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What :mod:`kmeans` clusters: pull ``h s w`` and pressure ``h s²``, both [N K / d, d].

    With them the cost of codeword c is ``sum h (w - s c)²``, the error of the weight itself.

    Args:
        weight: [N, K].
        scale: [N, 1].
        importance: h, [K].
        length: d.
    """
    pressure = importance * scale
    pull = (pressure * weight).view(-1, length)
    return pull, pressure.mul_(scale).view(-1, length)


def fit_scale(weight: Tensor, values: Tensor, importance: Tensor) -> Tensor:
    """The scales of least error for given values: ``sum h w v / sum h v²``, float32 [N, 1].

    Args:
        weight, values: [N, K]; ``values`` are the codebook entries that the codes stand for.
        importance: h, [K].
    """
    weighted = importance * values
    above = (weighted * weight).sum(dim=1, keepdim=True, dtype=torch.float64)
    below = (weighted * values).sum(dim=1, keepdim=True, dtype=torch.float64)
    return torch.where(below > 0, above / below.where(below > 0, 1.0), 0.0).float()


def round_codebook(codebook: Tensor) -> tuple[Tensor, float]:
    """``(integers int8 [E, d], step)`` with ``codebook ~ integers * step``; the largest entry becomes 127."""
    step = float(codebook.abs().max()) / LARGEST
    if step == 0.0:
        return torch.zeros(codebook.shape, dtype=torch.int8), 1.0
    return (codebook / step).round().clamp(-LARGEST, LARGEST).to(torch.int8), step


def refit(
    weight: Tensor, scale: Tensor, codebook: Tensor, importance: Tensor, rounds: int = REFITS
) -> tuple[Tensor, Tensor]:
    """Alternate assignments and least-squares scales under a fixed codebook; the error never grows.

    Args:
        weight: float32 [N, K].
        scale: float32 [N, 1] to start from.
        codebook: int8 [E, d].
        importance: [K].

    Returns:
        ``(codes int64 [N, K / d], scale)``: stable up to ``STABLE``, or after ``rounds``.
    """
    values = codebook.float()
    codes = torch.full((weight.numel() // values.shape[1],), -1)
    for _ in range(rounds):
        before = codes
        codes, _ = nearest(*points_of(weight, scale, importance, values.shape[1]), values)
        scale = fit_scale(weight, values[codes].view(weight.shape), importance)
        if int((codes != before).sum()) <= STABLE * len(codes):
            break
    return codes.view(weight.shape[0], -1), scale


def fit_vectors(
    weight: Tensor,
    format: Format,
    generator: torch.Generator,
    second_moment: Tensor | None = None,
    name: str = "weight",
    iterations: int = ITERATIONS,
    weigh_channels: bool = True,
    rounding: Literal["nearest", "gptq"] = "nearest",
    gptq: GptqSpec | None = None,
) -> FittedWeight:
    """Quantize ``weight``: scales by root mean square, k-means++, Lloyd, codebook in int8, refit.

    Args:
        weight: float [N, K], on the CPU.
        format: one of vectors, with a codebook per layer.
        generator: of the draws; equal seeds give equal bits.
        second_moment: see :func:`channel_weights`.
        name: the layer, for errors.
        iterations: of Lloyd, at most.
        weigh_channels: the codebook is that of least weighted error, where there is a second moment.
        rounding: gptq: the codes by :func:`vector_gptq`, then scales of least output error for them; needs
            the whole second moment.
        gptq: its settings; None: those of the paper.

    Raises:
        InputError: see :func:`check_vectors`; a weight is NaN or infinite; or no second moment where one is
            needed.
        StageError: as :func:`vector_gptq`.
    """
    rows, columns = weight.shape
    check_vectors(rows, columns, format, name)
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"{name} holds NaN or infinite values; give a checkpoint with finite weights")
    weight = weight.detach().float()
    importance = channel_weights(second_moment if weigh_channels else None, columns)
    scale = initial_scale(weight)
    pull, pressure = points_of(weight, scale, importance, format.vector_length)
    limit = POINTS_PER_CODEWORD * format.entries
    if len(pull) > limit:
        chosen = torch.randperm(len(pull), generator=generator)[:limit]
        pull, pressure = pull[chosen], pressure[chosen]
    start = plus_plus(pull, pressure, format.entries, generator)
    codebook, _ = lloyd(pull, pressure, start, iterations)
    del pull, pressure
    integers, step = round_codebook(codebook)
    codes, scale = refit(weight, scale * step, integers, importance)
    if rounding == "gptq":
        if second_moment is None or second_moment.dim() != 2:
            raise InputError(
                f"{name}: rounding: gptq needs the second moment of its inputs; calibrate, or use nearest"
            )
        settings = GptqSpec() if gptq is None else gptq
        codes = vector_gptq(
            weight,
            scale,
            integers,
            second_moment,
            damping=settings.damping,
            act_order=settings.act_order,
            name=name,
        )
        values = integers.float()[codes].view(weight.shape)
        scale = refit_scale(weight, values, scale, second_moment)
    return FittedWeight(codes.to(torch.uint8), scale, format, integers)
