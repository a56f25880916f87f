"""Does the ONNX file compute what PyTorch computes?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime
import torch
from torch import nn

from ditpress.errors import InputError
from ditpress.export.inputs import Keywords, Signature
from ditpress.export.session import run_session

MAX_CALLS = 4  # spread over the recorded timesteps


@dataclass(frozen=True)
class Parity:
    """Agreement over all compared outputs.

    Attributes:
        max_abs: largest absolute difference.
        output_range: largest minus smallest value of the PyTorch outputs.
        psnr: 10 log10(range² / mean squared difference) in dB; infinite where nothing differs.
    """

    max_abs: float
    output_range: float
    psnr: float

    @property
    def relative(self) -> float:
        """``max_abs`` as a fraction of the output's range; NaN where an output is not finite."""
        if self.max_abs == 0.0:
            return 0.0
        return self.max_abs / self.output_range if self.output_range > 0 else math.inf


def compare(
    session: onnxruntime.InferenceSession,
    transformer: nn.Module,
    calls: Sequence[Mapping[str, Any]],
    batch_sizes: Sequence[int] = (1, 3),
) -> Parity:
    """Run recorded calls through both at each batch size; rows of a call repeat or are cut to fit.

    Args:
        session: the exported model.
        transformer: the module it was exported from.
        calls: keyword arguments of the transformer; of many, ``MAX_CALLS`` evenly spread ones are taken.
        batch_sizes: samples per run.

    Raises:
        InputError: no calls.
    """
    if not calls:
        raise InputError("no recorded calls to compare ONNX with PyTorch on")
    picked = [
        calls[index * (len(calls) - 1) // max(1, min(len(calls), MAX_CALLS) - 1)]
        for index in range(min(len(calls), MAX_CALLS))
    ]
    largest, low, high, squares, count = 0.0, math.inf, -math.inf, 0.0, 0
    for kwargs in picked:
        signature = Signature.of(kwargs)
        module = Keywords(transformer, signature)
        for batch in batch_sizes:
            arguments = signature.arguments(kwargs, batch)
            with torch.no_grad():
                expected = module(*(arguments[name] for name in signature.tensors)).double()
            actual = run_session(session, arguments)
            if actual.shape != expected.shape:
                raise InputError(
                    f"ONNX output has shape {tuple(actual.shape)}, PyTorch {tuple(expected.shape)}"
                )
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
