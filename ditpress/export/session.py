"""Exported models in ONNX Runtime, and behind the face of a diffusers transformer."""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.export.inputs import SAMPLE_INPUT, flatten
from ditpress.kernels.cpu import isa, library_path

MODEL_FILE = "model.onnx"
CONSTANTS_KEY = "ditpress.constants"  # metadata: the arguments fixed in the graph, as JSON
DEFAULT_PROVIDERS = ("CPUExecutionProvider",)

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


def onnx_library_path() -> Path | None:
    """The library for ``SessionOptions.register_custom_ops_library``; None where it was not built."""
    return library_path()


def kernels_run() -> bool:
    """Whether ONNX Runtime gets kernels from our library here; else the functions in a file compute."""
    if library_path() is None or isa() == "reference":
        return False
    return isa() != "portable" or bool(os.environ.get("DITPRESS_ISA"))  # as the library itself decides


def onnx_session(
    path: str | Path,
    threads: int | None = None,
    library: bool = True,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
    optimize: bool = True,
) -> onnxruntime.InferenceSession:
    """Open an exported model with our kernels registered.

    Args:
        path: a ``model.onnx`` or the folder that holds it.
        threads: intra-op threads; None: as many as PyTorch computes with, which knows the cores this process
            may use and ``OMP_NUM_THREADS``, while ONNX Runtime takes all of the machine.
        library: False runs the model-local functions, as an ONNX Runtime without our library does.
        providers: execution providers, first choice first.
        optimize: False runs every operator as it is written in the file, in float32 as it stands there.

    Raises:
        InputError: no such file, or ONNX Runtime refuses it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / MODEL_FILE
    if not file.is_file():
        raise InputError(f"no ONNX model at {file}: expected {MODEL_FILE} as written by ditpress")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Between two steps the pipeline computes in PyTorch, on the cores that idle threads would spin on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library:
        shared = onnx_library_path()
        if shared is None:
            _warn_no_library()
        else:
            options.register_custom_ops_library(str(shared))
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise InputError(f"ONNX Runtime cannot load {file}: {str(error).splitlines()[0]}") from error


@functools.cache
def _warn_no_library() -> None:
    warnings.warn(
        "ditpress was installed without its C++ kernels, ONNX models run on the slower functions inside the "
        "file: install a C++17 compiler and reinstall ditpress",
        RuntimeWarning,
        stacklevel=3,
    )


def run_session(session: onnxruntime.InferenceSession, tensors: Mapping[str, Tensor]) -> Tensor:
    """The first output of :func:`run_session_outputs`."""
    return next(iter(run_session_outputs(session, tensors).values()))


def run_session_outputs(
    session: onnxruntime.InferenceSession, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One run: torch tensors in and out, converted to the input types of the graph, no other copies.

    Raises:
        InputError: an input is missing.
    """
    feeds: dict[str, np.ndarray] = {}
    for node in session.get_inputs():
        if node.name not in tensors:
            raise InputError(
                f"ONNX model needs the input {node.name!r}: pass it as it was when the model was exported"
            )
        tensor = tensors[node.name].detach().to("cpu", _DTYPES[node.type])
        feeds[node.name] = tensor.contiguous().numpy()
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, feeds)), strict=True))


class OnnxTransformer(nn.Module):
    """An exported transformer in the place of the PyTorch one.

    ``pipeline.transformer = OnnxTransformer(path)`` is all it takes. It has no parameters, ``.to()`` and the
    like change nothing. Results come back on the device of ``hidden_states``.

    Args:
        path: ``model.onnx`` or its folder.
        config: the transformer's config; None reads ``config.json`` beside the model.
        threads, library, providers: as in :func:`onnx_session`.

    Attributes:
        config: read-only, by attribute or key, as on diffusers models.
        session: the ``onnxruntime.InferenceSession``.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        library: bool = True,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        super().__init__()
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        self.session = onnx_session(path, threads, library, providers)
        if config is None:
            try:
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"no readable config.json in {folder}: it is written beside {MODEL_FILE}"
                ) from error
        self.config = FrozenDict(config)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self._constants: dict[str, Any] = json.loads(metadata.get(CONSTANTS_KEY, "{}"))
        self._inputs = frozenset(node.name for node in self.session.get_inputs())

    @property
    def dtype(self) -> torch.dtype:
        """Type of ``hidden_states`` in the graph."""
        types = {node.name: node.type for node in self.session.get_inputs()}
        return _DTYPES[types[SAMPLE_INPUT]]

    @property
    def device(self) -> torch.device:
        """Where results come back: the CPU unless the input lives elsewhere."""
        return torch.device("cpu")

    def forward(
        self, hidden_states: Tensor, return_dict: bool = True, **kwargs: Any
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Denoise; the keyword arguments are those of the exported transformer.

        Raises:
            InputError: an argument the graph does not take, or a constant other than the exported one.
        """
        tensors, constants = flatten({SAMPLE_INPUT: hidden_states, **kwargs})
        for name in tensors:
            if name not in self._inputs:
                known = ", ".join(sorted(self._inputs))
                raise InputError(f"exported transformer takes no tensor {name!r}: its inputs are {known}")
        for name, value in constants.items():
            fixed = self._constants.get(name)
            if value != fixed and not _same_number(value, fixed):
                raise InputError(
                    f"exported transformer has {name}={fixed!r} built in, got {value!r}: export it again"
                )
        sample = run_session(self.session, tensors).to(hidden_states.device)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


def _same_number(value: Any, fixed: Any) -> bool:
    """Numbers survive JSON up to their type."""
    return isinstance(value, float) and isinstance(fixed, int | float) and math.isclose(value, fixed)
