"""Does the ONNX file compute what PyTorch computes?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.export.inputs import Keywords, Signature
from ditpress.export.session import run_session

MAX_CALLS = 4  # spread over the recorded timesteps
ROUNDING_PSNR = 30.0  # dB
FUSION_LIMIT = 1e-5  # of the output's range


@dataclass(frozen=True)
class Parity:
    """Agreement over all compared outputs.

    Attributes:
        max_abs: largest absolute difference.
        output_range: largest minus smallest value of the PyTorch outputs.
        psnr: 10 log10(range² / mean squared difference) in dB; infinite where nothing differs.
        pieces: largest relative difference of any piece of the graph on equal inputs, where the end-to-end
            comparison alone could not decide (see :mod:`ditpress.export.openloop`); else None.
        fusion: relative difference that fusing nodes made (see :mod:`ditpress.export.fuse`), with the other
            numbers then those of the fused file, ``pieces`` that of the graph before; None: not fused.
    """

    max_abs: float
    output_range: float
    psnr: float
    pieces: float | None = None
    fusion: float | None = None

    @property
    def relative(self) -> float:
        """``max_abs`` as a fraction of the output's range; NaN where an output is not finite."""
        if self.max_abs == 0.0:
            return 0.0
        return self.max_abs / self.output_range if self.output_range > 0 else math.inf

    def holds(self, limit: float) -> bool:
        """Whether both compute the same up to ``limit`` of the range: end to end, or in every piece.

        Where only the pieces agree, roundings to int8 fell differently; the ends must then still agree to
        ``ROUNDING_PSNR``, the order of the quantization noise itself. So must those of a fused file, whose
        nodes sum in an order of their own, while the rewriting itself keeps to ``FUSION_LIMIT``.
        """
        if self.fusion is not None and not self.fusion <= FUSION_LIMIT:
            return False
        if self.relative <= limit:
            return self.pieces is None or self.pieces <= limit
        inner = self.fusion if self.pieces is None else self.pieces
        return inner is not None and inner <= limit and self.psnr >= ROUNDING_PSNR

    def __str__(self) -> str:
        text = f"end to end {self.relative:.2e} of the output's range, PSNR {self.psnr:.1f} dB"
        if self.pieces is not None:
            text += f", piece by piece {self.pieces:.2e}"
        return text if self.fusion is None else f"{text}, fused against unfused {self.fusion:.2e}"


@dataclass(frozen=True)
class Case:
    """Inputs of the graph and what PyTorch computes of them, in float64."""

    arguments: dict[str, Tensor]
    expected: Tensor


def cases(
    transformer: nn.Module, calls: Sequence[Mapping[str, Any]], batch_sizes: Sequence[int] = (1, 3)
) -> list[Case]:
    """Run recorded calls through PyTorch at each batch size; rows of a call repeat or are cut to fit.

    Args:
        transformer: the module that was exported.
        calls: keyword arguments of the transformer; of many, ``MAX_CALLS`` evenly spread ones are taken.
        batch_sizes: samples per run.

    Raises:
        InputError: no calls.
    """
    if not calls:
        raise InputError("no recorded calls to compare ONNX with PyTorch on")
    count = min(len(calls), MAX_CALLS)
    found = []
    for index in range(count):
        kwargs = calls[index * (len(calls) - 1) // max(1, count - 1)]
        signature = Signature.of(kwargs)
        module = Keywords(transformer, signature)
        for batch in batch_sizes:
            arguments = signature.arguments(kwargs, batch)
            with torch.no_grad():
                expected = module(*(arguments[name] for name in signature.tensors)).double()
            found.append(Case(arguments, expected))
    return found


def compare(session: onnxruntime.InferenceSession, cases: Sequence[Case]) -> Parity:
    """Agreement of the exported model in ``session`` with PyTorch.

    Raises:
        InputError: an output of another shape.
    """
    largest, low, high, squares, count = 0.0, math.inf, -math.inf, 0.0, 0
    for case in cases:
        actual, expected = run_session(session, case.arguments), case.expected
        if actual.shape != expected.shape:
            raise InputError(f"ONNX output has shape {tuple(actual.shape)}, PyTorch {tuple(expected.shape)}")
        difference = (actual.double() - expected).abs()
        # A NaN must not get lost in max(): Python's max keeps its first argument then.
        largest = float(torch.tensor([largest, float(difference.max())]).double().max())
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
        squares += float(difference.square().sum())
        count += difference.numel()
    output_range = high - low
    error = squares / count
    psnr = 10 * math.log10(output_range**2 / error) if error > 0 and output_range > 0 else math.inf
    return Parity(largest, output_range, math.nan if math.isnan(error) else psnr)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference as a fraction of the range of ``expected``."""
    difference = float((actual - expected).abs().max())
    return difference / float(expected.max() - expected.min()) if difference != 0 else 0.0
