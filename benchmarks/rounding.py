"""How far apart two correct runs of a model with int8 activations end up.

    python benchmarks/rounding.py out         # a finished run folder

Rounding to int8 is a step function: a difference in the last bit of a float before it moves some values to
the next step, and those move others in the layers behind. So PyTorch does not agree with itself to float
accuracy when the batch size or the last bit of the input changes, and no ONNX runtime can agree with it end
to end. Piece by piece, on equal inputs, they agree to float accuracy (parity.pieces_relative in report.json).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import ditpress
from ditpress.calibrate.calls import load_calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="run folder with model/ and the calibration calls in stages/")
    args = parser.parse_args()
    transformer = ditpress.load(args.out).transformer
    (calibration,) = args.out.glob("stages/00-calibration-*")
    worst = {"batch 1 instead of the whole batch": 0.0, "last bit of the input": 0.0}
    with torch.inference_mode():
        for call in load_calls(calibration):

            def run(kwargs: dict[str, Tensor]) -> Tensor:
                return transformer(**kwargs, return_dict=False)[0]

            y = run(call.kwargs)
            changed = {
                "batch 1 instead of the whole batch": run({k: v[:1] for k, v in call.kwargs.items()}),
                "last bit of the input": run(
                    {k: v * (1 + 2**-23) if v.is_floating_point() else v for k, v in call.kwargs.items()}
                ),
            }
            for name, other in changed.items():
                difference = (other - y[: len(other)]).abs().max() / (y.max() - y.min())
                worst[name] = max(worst[name], float(difference))
    for name, difference in worst.items():
        print(f"PyTorch against itself, {name}: {difference:.1e} of the output's range")


if __name__ == "__main__":
    main()
