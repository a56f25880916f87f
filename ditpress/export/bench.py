"""One denoising step of the original and of the compressed model, both in ONNX Runtime on the same inputs."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.export.inputs import Signature
from ditpress.export.onnx import export_transformer, record_kwargs
from ditpress.export.session import onnx_session, run_session

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser


@contextmanager
def step_functions(
    load_original: Callable[[], Denoiser],
    compressed: str | Path,
    *,
    batch: int | None = None,
    threads: int | None = None,
    call: Mapping[str, Any] | None = None,
    scratch: str | Path | None = None,
) -> Iterator[dict[str, Callable[[], Tensor]]]:
    """Yield ``{"original": step, "compressed": step}``, ready to be timed in turn.

    The original is exported in float32 to a temporary folder, which is removed at the end. It is loaded by a
    function and not passed in, so that its PyTorch weights can go before the sessions take their memory: the
    peak is about twice the float32 weights.

    Args:
        load_original: makes the denoiser that was compressed.
        compressed: ``model.onnx`` of the compressed model, or its folder.
        batch: samples per step; None takes that of the call.
        threads: intra-op threads of each session; None leaves the choice to ONNX Runtime.
        call: keyword arguments of one call of the transformer; None records them from the pipeline.
        scratch: where the temporary folder goes; it takes the size of the float32 weights. None: beside
            ``compressed``.

    Raises:
        InputError: the compressed model is missing or takes other inputs.
        StageError: the original does not export.
    """
    session = onnx_session(compressed, threads)
    place = Path(compressed)
    home = Path(scratch) if scratch is not None else (place if place.is_dir() else place.parent).parent
    with tempfile.TemporaryDirectory(prefix=".original.", dir=home) as folder:
        arguments, path = _export_original(load_original(), Path(folder), batch, call)
        names, expected = {node.name for node in session.get_inputs()}, set(arguments)
        if names != expected:
            raise InputError(
                f"{compressed} takes {', '.join(sorted(names))}, the original {', '.join(sorted(expected))}: "
                "expected an export of the same model"
            )
        gc.collect()
        original = onnx_session(path, threads, library=False)
        yield {"original": _step(original, arguments), "compressed": _step(session, arguments)}


def _export_original(
    denoiser: Denoiser, folder: Path, batch: int | None, call: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], Path]:
    """Its only reference to the PyTorch weights ends with the call."""
    kwargs = dict(call) if call is not None else record_kwargs(denoiser)[0]
    path, _ = export_transformer(denoiser.transformer, folder / "transformer", [kwargs])
    return Signature.of(kwargs).arguments(kwargs, batch), path


def _step(session: onnxruntime.InferenceSession, arguments: dict[str, Tensor]) -> Callable[[], Tensor]:
    def step() -> Tensor:
        with torch.no_grad():
            return run_session(session, arguments)

    return step
