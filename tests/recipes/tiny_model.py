"""A model folder small enough to run a whole recipe in seconds."""

from __future__ import annotations

import hashlib
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
