"""Milliseconds per denoising step: the original in fp32 ONNX against ours, both in ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ditpress.calibrate.calls import Call, load_calls, record_calls
from ditpress.errors import InputError
from ditpress.export.inputs import Signature
from ditpress.export.onnx import export_transformer
from ditpress.export.session import onnx_session, run_session
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.recipes.checkpoint import MANIFEST
from ditpress.recipes.run import read_marker
from ditpress.validate.report import Speed
from ditpress.validate.speed import bench

ORIGINAL = "original-onnx"  # name of the step that exports the original
BATCH = 2  # one image under classifier-free guidance


def export_original(denoiser: Denoiser, calls: Sequence[Call], folder: Path) -> None:
    """Write the float transformer as ``folder/model.onnx``."""
    export_transformer(denoiser.transformer, folder / "transformer", [call.kwargs for call in calls])


def measure(original: Path, compressed: Path, calls: Sequence[Call], *, threads: int | None = None) -> Speed:
    """Time one step of both models.

    Args:
        original: folder of :func:`export_original`.
        compressed: folder with the exported ``model.onnx`` of a run.
        calls: recorded calls; the inputs of the middle one are used, with a batch of two.
        threads: of ONNX Runtime; None: as many as torch uses.
    """
    threads = threads or torch.get_num_threads()
    call = calls[len(calls) // 2]
    inputs = Signature.of(call.kwargs).arguments(call.kwargs, BATCH)
    first = onnx_session(original / "transformer", threads)
    second = onnx_session(compressed, threads)
    steps = {
        "original": lambda: run_session(first, inputs),
        "compressed": lambda: run_session(second, inputs),
    }
    return Speed(**bench(steps, threads=threads))


def bench_run(out: str | Path, *, threads: int | None = None) -> Speed:
    """Measure a finished run; the original is exported again where its file is gone.

    Raises:
        InputError: ``out`` is no run folder, or its run is not finished.
    """
    path = Path(out)
    marker = read_marker(path)
    if marker is None:
        raise InputError(f"{path}: no run folder of ditpress; give the OUT of a run")
    compressed = path / "onnx" / "transformer"
    if not (compressed / "model.onnx").is_file():
        raise InputError(f"{path}: the run has no onnx/ yet; finish it by running its recipe again")
    with tempfile.TemporaryDirectory(prefix="ditpress-bench-") as scratch:
        original, calls = _finished(path, ORIGINAL), _finished(path, "calibration")
        if original is not None and calls is not None:
            return measure(original, compressed, load_calls(calls), threads=threads)
        denoiser = load_denoiser(marker["model"], scheduler=marker["scheduler"], seed=marker["seed"])
        if denoiser.fingerprint != marker["fingerprint"]:
            raise InputError(
                f"{path}: {marker['model']} is not the model of this run any more; run its recipe again"
            )
        recorded = record_calls(denoiser, samples=1, steps=1, guidance=None, seed=0)
        export_original(denoiser, recorded, Path(scratch))
        return measure(Path(scratch), compressed, recorded, threads=threads)


def _finished(out: Path, name: str) -> Path | None:
    """The folder of the newest finished step ``name``."""
    found = [folder for folder in out.glob(f"stages/00-{name}-*") if _is_finished(folder)]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _is_finished(folder: Path) -> bool:
    try:
        json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
