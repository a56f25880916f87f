"""What test_torchrun.py starts, in one process and in two: the trainer by itself, and a whole run.

python train_together.py FOLDER NAME    reads FOLDER/model, writes FOLDER/NAME.json and the run FOLDER/NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers.utils import logging
from tiny_dit import tiny_pipeline

import ditpress
from ditpress.calibrate.calls import record_calls
from ditpress.compress.distill.losses import masked_error
from ditpress.compress.distill.trainer import Training, distill
from ditpress.load import load_denoiser
from ditpress.processes import join

SETTINGS = [
    "calibration.samples=1",
    "calibration.steps=4",
    "validation.samples=0",
    "validation.speed=false",
    "prune-depth.keep=[0, 2]",
    "distill.samples=4",
    "distill.sampling_steps=3",
    "distill.batch=2",
    "distill.save_every=3",
    "distill.training.steps=8",
]


def losses() -> list[float]:
    """The loss curve of a student with 3 calls a step: an uneven share for two processes."""
    teacher, student = (load_denoiser(tiny_pipeline(seed)) for seed in (1, 2))
    calls = record_calls(teacher, samples=8, steps=4, guidance=2.0, seed=5, batch_size=2)
    training = Training(steps=25, calls=3, learning_rate=3e-3, features=0.5, ema=0.9)
    parameters = list(student.transformer.parameters())
    return distill(
        student.transformer,
        teacher.transformer,
        calls,
        training,
        [{"params": parameters}],
        blocks=[("transformer_blocks.0", "transformer_blocks.0")],
        feature_error=masked_error,
        processes=join(),
    )


def main(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    history = losses()
    if join().first:
        (folder / f"{name}.json").write_text(json.dumps([join().size, history]))
    ditpress.compress(str(folder / "model"), "prune-depth", out=folder / name, overrides=SETTINGS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
