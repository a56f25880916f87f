"""Calibration data: the calls a pipeline makes to its transformer while it draws images from noise."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.files import atomic_folder
from ditpress.load.denoiser import Denoiser

SCHEMA = 1
_TENSORS, _STRUCTURE = "calls.safetensors", "calls.json"


@dataclass
class Call:
    """One call of the transformer: ``transformer(**call.kwargs)`` repeats it.

    ``timestep`` is the value the pipeline passed (one for the whole batch). ``kwargs`` are the arguments by
    name, tensors copied to the CPU; ``return_dict`` is left out, so the result has ``.sample`` and ``[0]``.
    """

    timestep: float
    kwargs: dict[str, Any]


def record_calls(
    denoiser: Denoiser,
    *,
    samples: int,
    steps: int | None,
    guidance: float | None,
    seed: int,
    batch_size: int = 64,
    description: str = "calibration",
) -> list[Call]:
    """Draw ``samples`` images with the seeds ``seed``, ``seed + 1``, … and record every call, in order.

    No data is needed. A call holds ``batch_size`` images, with guidance both halves of the doubled batch.
    ``steps``, ``guidance``: None: the model's own.
    """
    calls: list[Call] = []
    with recording(denoiser.transformer, calls):
        denoiser.sample(
            range(seed, seed + samples),
            steps=steps,
            guidance=guidance,
            batch_size=batch_size,
            description=description,
        )
    return calls


@contextlib.contextmanager
def recording(transformer: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Append every call of ``transformer`` inside the block to ``calls``."""
    signature = inspect.signature(transformer.forward)

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        arguments.pop("return_dict", None)
        if "timestep" not in arguments:
            raise InputError(f"{type(module).__name__}: was called without a timestep; cannot be calibrated")
        timestep = torch.as_tensor(arguments["timestep"]).flatten()[0].item()
        calls.append(Call(float(timestep), _copied(arguments)))

    handle = transformer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def save_calls(calls: list[Call], folder: Path | str) -> None:
    """Write ``calls`` to ``folder`` (calls.safetensors, calls.json), whole or not at all."""
    tensors: dict[str, Tensor] = {}
    entries = [
        {"timestep": call.timestep, "kwargs": _packed(call.kwargs, str(index), tensors)}
        for index, call in enumerate(calls)
    ]
    with atomic_folder(folder) as scratch:
        save_file(tensors, scratch / _TENSORS)
        (scratch / _STRUCTURE).write_text(json.dumps({"schema": SCHEMA, "calls": entries}), encoding="utf-8")


def load_calls(folder: Path | str) -> list[Call]:
    """The calls that ``save_calls`` wrote. Raises InputError for a missing or damaged folder."""
    folder = Path(folder)
    try:
        structure = json.loads((folder / _STRUCTURE).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
        if structure["schema"] != SCHEMA:
            raise InputError(
                f"{folder}: calls of schema {structure['schema']}, expected {SCHEMA}; record again"
            )
        return [Call(entry["timestep"], _unpacked(entry["kwargs"], tensors)) for entry in structure["calls"]]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder}: no readable recorded calls ({error}); record them again") from error


def _copied(value: Any) -> Any:
    """A deep copy with tensors on the CPU: pipelines update theirs in place."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def _packed(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for ``value``; its tensors go to ``tensors`` under keys that start with ``key``."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": {name: _packed(item, f"{key}.{name}", tensors) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        items = [_packed(item, f"{key}.{index}", tensors) for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise InputError(
        f"call argument {key}: a {type(value).__name__} cannot be stored, expected tensors or numbers"
    )


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    ((form, content),) = value.items()
    if form == "tensor":
        return tensors[content]
    if form == "dict":
        return {name: _unpacked(item, tensors) for name, item in content.items()}
    if form in ("list", "tuple"):
        items = [_unpacked(item, tensors) for item in content]
        return tuple(items) if form == "tuple" else items
    return content
