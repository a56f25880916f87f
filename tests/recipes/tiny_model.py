"""A model folder small enough to run a whole recipe in seconds."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tiny_dit import tiny_pipeline

QUICK = ["calibration.samples=1", "calibration.steps=8", "validation.samples=0", "validation.speed=false"]


def save_model(folder: Path, seed: int = 0) -> Path:
    """64 wide, so that a group of 64 divides every layer."""
    tiny_pipeline(seed=seed, num_attention_heads=4, attention_head_dim=16).save_pretrained(folder)
    return folder


def hashes(out: Path) -> dict[str, str]:
    """sha256 of every file that a run delivers, but the report, which holds times."""
    files = [out / "recipe.yaml", *(out / "model").rglob("*"), *(out / "onnx").rglob("*")]
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


def kill_when(moment: str, recipe: str, model: Path, out: Path, settings: Iterable[str]) -> None:
    """Run ``ditpress recipe model -o out`` and kill it, as by kill -9, as soon as ``out`` has ``moment``.

    ``moment`` is the name of a file or folder, with wildcards; what follows it is cut off in the middle.
    """
    command = [sys.executable, "-P", "-c", "from ditpress.cli import main; main()"]
    command += [recipe, str(model), "-o", str(out)]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(out.glob(moment)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
