"""Figures on same-seed pairs: the original's image or output against the compressed model's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ditpress.errors import InputError
from ditpress.progress import track
from ditpress.validate.bootstrap import standard_error
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
    """Signal to quantization noise of the transformer's outputs, in dB, over all calls and per timestep.

    ``total_error`` and ``errors_by_timestep``: their standard errors over the samples of a call, in dB; None
    and empty where one sample, or calls of different batch sizes, do not tell.
    """

    total_db: float
    by_timestep: dict[float, float]
    total_error: float | None = None
    errors_by_timestep: dict[float, float | None] = field(default_factory=dict)


def psnr(original: Tensor, compressed: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE), MSE over all pixels of all pairs.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1]. At most :data:`MAX_DB`.
    """
    return psnr_of(squared_errors(original, compressed))


def psnr_of(errors: Tensor) -> float:
    """PSNR in dB of the mean of ``errors`` [n], each the mean squared error of one pair."""
    return decibel(1.0, float(errors.double().mean()))


def squared_errors(original: Tensor, compressed: Tensor) -> Tensor:
    """Mean squared error of every pair, float64 [n], over its pixels; arguments as of :func:`psnr`."""
    parts = [(a.double() - b.double()).square().flatten(1).mean(1) for a, b in pairs_of(original, compressed)]
    return torch.cat(parts)


def ssim(original: Tensor, compressed: Tensor) -> float:
    """Mean of :func:`structural_similarities`."""
    return float(structural_similarities(original, compressed).mean())


def structural_similarities(original: Tensor, compressed: Tensor) -> Tensor:
    """Structural similarity of every pair, float64 [n].

    Wang et al. 2004; Gaussian window σ = 1.5, 11 x 11, K = 0.01, 0.03.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1], H and W at least 6.
    """
    pairs = track(pairs_of(original, compressed), "SSIM", math.ceil(len(original) / BATCH_SIZE))
    parts = [
        structural_similarity_index_measure(b, a, data_range=1.0, reduction="none").reshape(len(a))
        for a, b in pairs
    ]
    return torch.cat(parts).double()


def feature_distance(extractor: FeatureExtractor, original: Tensor, compressed: Tensor) -> float:
    """Mean of :func:`feature_distances`."""
    return float(feature_distances(extractor, original, compressed).mean())


def feature_distances(extractor: FeatureExtractor, original: Tensor, compressed: Tensor) -> Tensor:
    """Perceptual distance in the manner of LPIPS (Zhang et al. 2018, eq. 1) with unit weights, float64 [n].

    d = Σ_layers mean_patches ‖f̂ - ĝ‖² of every pair, where f̂ and ĝ are the patch features of the CLIP
    vision tower, each scaled to unit length. Figures of different extractors cannot be compared: the report
    names the extractor.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1].
    """
    parts = []
    count = math.ceil(len(original) / BATCH_SIZE)
    for a, b in track(pairs_of(original, compressed), "feature distance", count):
        distance = torch.zeros(len(a), dtype=torch.float64)
        for f, g in zip(extractor.patch_features(a), extractor.patch_features(b), strict=True):
            difference = F.normalize(f, dim=-1) - F.normalize(g, dim=-1)
            distance += difference.square().sum(-1).mean(-1).double().cpu()
        parts.append(distance)
    return torch.cat(parts)


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
    signal: dict[float, list[Tensor]] = defaultdict(list)  # per call, energy of each row of the batch
    noise: dict[float, list[Tensor]] = defaultdict(list)
    for call in track(calls, "output SQNR"):
        y = first_tensor(original(**call.kwargs)).double()
        y_hat = first_tensor(compressed(**call.kwargs)).double()
        timestep = float(call.timestep)
        signal[timestep].append(y.square().reshape(len(y), -1).sum(1).cpu())
        noise[timestep].append((y - y_hat).square().reshape(len(y), -1).sum(1).cpu())
    if not signal:
        raise InputError("output SQNR: no recorded calls; expected at least one")
    steps = sorted(signal)
    rows = {len(energies) for step in steps for energies in signal[step]}
    errors: dict[float, float | None] = {}
    total_error = None
    if len(rows) == 1:
        sums = {step: (torch.stack(signal[step]).sum(0), torch.stack(noise[step]).sum(0)) for step in steps}
        errors = {step: decibel_error(*sums[step]) for step in steps}
        total_error = decibel_error(
            *(torch.stack(parts).sum(0) for parts in zip(*sums.values(), strict=True))
        )
    energy = {step: (_total(signal[step]), _total(noise[step])) for step in steps}
    return OutputSqnr(
        total_db=decibel(*(sum(parts) for parts in zip(*energy.values(), strict=True))),
        by_timestep={step: decibel(*energy[step]) for step in steps},
        total_error=total_error,
        errors_by_timestep=errors,
    )


def _total(energies: Sequence[Tensor]) -> float:
    return float(sum(rows.sum() for rows in energies))


def decibel_error(signal: Tensor, noise: Tensor) -> float | None:
    """Standard error in dB of 10 log10(Σ signal / Σ noise), rows [n] resampled together; None of one row."""
    if len(signal) < 2:
        return None

    def ratio(counts: Tensor) -> Tensor:
        tiny = torch.finfo(torch.float64).tiny
        return 10 * ((counts @ signal + tiny) / (counts @ noise + tiny)).log10().clamp(-MAX_DB, MAX_DB)

    return standard_error(ratio, len(signal))


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


def pairs_of(original: Tensor, compressed: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Both sides in batches, float32.

    Raises:
        InputError: not two equal shapes [n, C, H, W] with n of at least 1.
    """
    if original.shape != compressed.shape or original.ndim != 4 or not len(original):
        raise InputError(
            f"paired figures: images {tuple(original.shape)} and {tuple(compressed.shape)}; "
            "expected two equal shapes [n, C, H, W], one pair per seed"
        )
    return zip(original.float().split(BATCH_SIZE), compressed.float().split(BATCH_SIZE), strict=True)
