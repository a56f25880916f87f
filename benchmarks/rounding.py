"""How far apart two correct runs of a model with int8 activations end up.

    python benchmarks/rounding.py out         # a finished run folder

Rounding to int8 is a step function: a difference in the last bit of a float before it moves some values to
the next step, and those move others in the layers behind. So PyTorch does not agree with itself to float
accuracy when the batch size or the last bit of the input changes, and no ONNX runtime can agree with it end
to end. With float64 between the low-bit layers, whose own sums are exact, PyTorch does agree with itself: the
roundings are all there is to it. Piece by piece, on equal inputs, PyTorch and ONNX Runtime agree to float
accuracy (parity.pieces_relative in report.json).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import ditpress
from ditpress.calibrate.calls import Call, load_calls


def spread(transformer: nn.Module, calls: Sequence[Call], dtype: torch.dtype) -> dict[str, float]:
    """Largest change of the output, as a part of its range, with ``dtype`` between the low-bit layers."""
    worst = {"batch 1 instead of the whole batch": 0.0, "last bit of the input": 0.0}
    last_bit = 1 + torch.finfo(dtype).eps
    with torch.inference_mode():
        nn.Module.to(transformer, dtype)  # diffusers' own refuses; our layers keep their buffers as they are
        for call in calls:
            inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in call.kwargs.items()}
            first = {k: v[:1] for k, v in inputs.items()}
            nudged = {k: v * last_bit if v.is_floating_point() else v for k, v in inputs.items()}
            y = transformer(**inputs, return_dict=False)[0]
            for name, changed in zip(worst, (first, nudged), strict=True):
                other = transformer(**changed, return_dict=False)[0]
                difference = (other - y[: len(other)]).abs().max() / (y.max() - y.min())
                worst[name] = max(worst[name], float(difference))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="run folder with model/ and the calibration calls in stages/")
    args = parser.parse_args()
    transformer = ditpress.load(args.out).transformer
    (calibration,) = args.out.glob("stages/00-calibration-*")
    calls = load_calls(calibration)
    for dtype in (torch.float32, torch.float64):
        for name, difference in spread(transformer, calls, dtype).items():
            between = str(dtype).removeprefix("torch.")
            print(f"PyTorch against itself, {between} between layers, {name}: {difference:.1e} of the range")


if __name__ == "__main__":
    main()
