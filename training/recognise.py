"""How many of a model's digits does the judge recognise?

python training/recognise.py zoo:mnist-dit            # a model, in PyTorch
python training/recognise.py out                      # a run folder: through its exported ONNX file
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import ditpress
from ditpress.export.session import OnnxTransformer
from ditpress.load import load_denoiser
from ditpress.load.denoiser import Denoiser
from mnist_classifier import accuracy, load_classifier

ROOT = Path(__file__).parent.parent
ONNX = Path("onnx") / "transformer"


def judge_accuracy() -> float:
    """Share of the 10,000 real test digits that the classifier gets right."""
    with np.load(ROOT / "ditpress" / "data" / "mnist-test.npz") as data:
        images = torch.from_numpy(data["images"].astype(np.float32) / 255)[:, None]
        labels = torch.from_numpy(data["labels"].astype(np.int64))
    return accuracy(load_classifier(), images, labels)


def load_model(model: str) -> Denoiser:
    """A MODEL as the command line takes it; a run folder is drawn through the ONNX file that ships."""
    denoiser = load_denoiser(model)
    if (Path(model) / ONNX).is_dir():
        return denoiser.with_transformer(OnnxTransformer(Path(model) / ONNX))
    return denoiser


def recognised(
    denoiser: Denoiser, samples: int, steps: int | None, guidance: float | None, seed: int
) -> float:
    """Share of ``samples`` digits, drawn from seeds ``seed ...``, that are recognised as their class."""
    images = denoiser.sample(range(seed, seed + samples), steps=steps, guidance=guidance)
    return accuracy(load_classifier(), images, torch.tensor(denoiser.conditions(samples)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="zoo:mnist-dit")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    denoiser = load_model(args.model)
    figures = {
        "model": args.model,
        "samples": args.samples,
        "steps": args.steps or denoiser.default_steps,
        "guidance": denoiser.default_guidance if args.guidance is None else args.guidance,
        "seed": args.seed,
        "recognised": round(recognised(denoiser, args.samples, args.steps, args.guidance, args.seed), 4),
        "judge_accuracy_on_real_digits": round(judge_accuracy(), 4),
        "ditpress": ditpress.__version__,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
