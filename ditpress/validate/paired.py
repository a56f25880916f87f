"""Figures on same-seed pairs: the original's image or output against the compressed model's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from ditpress.errors import InputError
from ditpress.progress import track
from ditpress.validate.extractor import FeatureExtractor

MAX_DB = 200.0  # equal signals have no noise at all; float32 ends near 150 dB, and JSON knows no infinity
BATCH_SIZE = 64


class RecordedCall(Protocol):
    """What this file needs of a recorded transformer call."""

    @property
    def timestep(self) -> float: ...

    @property
    def kwargs(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class OutputSqnr:
    """Signal to quantization noise of the transformer's outputs, in dB, over all calls and per timestep."""

    total_db: float
    by_timestep: dict[float, float]


def psnr(original: Tensor, compressed: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE), MSE over all pixels of all pairs.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1]. At most :data:`MAX_DB`.
    """
    metric = PeakSignalNoiseRatio(data_range=1.0)
    for a, b in _pairs(original, compressed):
        metric.update(b, a)
    return min(MAX_DB, float(metric.compute()))


def ssim(original: Tensor, compressed: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004; Gaussian window σ = 1.5, 11 x 11, K = 0.01, 0.03).

    Args:
        original, compressed: float [n, C, H, W] in [0, 1], H and W at least 6.
    """
    metric = StructuralSimilarityIndexMeasure(data_range=1.0)
    for a, b in track(_pairs(original, compressed), "SSIM", math.ceil(len(original) / BATCH_SIZE)):
        metric.update(b, a)
    return float(metric.compute())


def feature_distance(extractor: FeatureExtractor, original: Tensor, compressed: Tensor) -> float:
    """Perceptual distance in the manner of LPIPS (Zhang et al. 2018, eq. 1) with unit weights.

    d = mean over pairs of Σ_layers mean_patches ‖f̂ - ĝ‖², where f̂ and ĝ are the patch features of the
    CLIP vision tower, each scaled to unit length. Figures of different extractors cannot be compared:
    the report names the extractor.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1].
    """
    total = 0.0
    count = math.ceil(len(original) / BATCH_SIZE)
    for a, b in track(_pairs(original, compressed), "feature distance", count):
        for f, g in zip(extractor.patch_features(a), extractor.patch_features(b), strict=True):
            difference = F.normalize(f, dim=-1) - F.normalize(g, dim=-1)
            total += float(difference.square().sum(-1).mean(-1).double().sum())
    return total / len(original)


@torch.inference_mode()
def output_sqnr(
    original: Callable[..., Any], compressed: Callable[..., Any], calls: Iterable[RecordedCall]
) -> OutputSqnr:
    """10 log10(Σ|y|² / Σ|y - ŷ|²) of the outputs of two transformers on the same recorded calls.

    Both see the inputs that the original's own sampling produced, so the figure holds the error of one
    step, not its accumulation. One call at a time; sums in float64. At most :data:`MAX_DB`.

    Raises:
        InputError: no calls.
    """
    signal: dict[float, float] = defaultdict(float)
    noise: dict[float, float] = defaultdict(float)
    for call in track(calls, "output SQNR"):
        y = first_tensor(original(**call.kwargs)).double()
        y_hat = first_tensor(compressed(**call.kwargs)).double()
        timestep = float(call.timestep)
        signal[timestep] += float(y.square().sum())
        noise[timestep] += float((y - y_hat).square().sum())
    if not signal:
        raise InputError("output SQNR: no recorded calls; expected at least one")
    return OutputSqnr(
        total_db=decibel(sum(signal.values()), sum(noise.values())),
        by_timestep={timestep: decibel(signal[timestep], noise[timestep]) for timestep in sorted(signal)},
    )


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies, kept within ±:data:`MAX_DB`."""
    if noise == 0:
        return MAX_DB
    if signal == 0:
        return -MAX_DB
    return max(-MAX_DB, min(MAX_DB, 10 * math.log10(signal / noise)))


def first_tensor(output: Any) -> Tensor:
    """The tensor in what a diffusers transformer returns: itself, ``.sample``, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    return output[0]


def _pairs(original: Tensor, compressed: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    if original.shape != compressed.shape or original.ndim != 4 or not len(original):
        raise InputError(
            f"paired figures: images {tuple(original.shape)} and {tuple(compressed.shape)}; "
            "expected two equal shapes [n, C, H, W], one pair per seed"
        )
    return zip(original.float().split(BATCH_SIZE), compressed.float().split(BATCH_SIZE), strict=True)
