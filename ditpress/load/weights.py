"""Reading a transformer folder: which class it is, that its weights are complete, and finite."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from torch import nn

from ditpress.errors import InputError
from ditpress.load.families import FAMILIES
from ditpress.load.source import CONVERT, PICKLES

_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_KNOWN = tuple(name for family in FAMILIES for name in family.classes)


def load_transformer(folder: Path) -> nn.Module:
    """The transformer of a diffusers folder (config.json and safetensors), in float32, in eval mode.

    A folder that ditpress wrote comes back with its quantized layers.

    Raises:
        InputError: no such folder, an unknown class, missing, truncated or pickled weights, weights that do
            not belong to this config, NaN or infinite values.
    """
    config = read_json(folder / "config.json")
    cls = transformer_class(folder, config)
    method = (config.get("quantization_config") or {}).get("quant_method", "ditpress")
    if method != "ditpress":
        raise InputError(f"{folder}: is already quantized with {method}; give the original model")
    check_safetensors(folder)
    try:
        with quiet_diffusers():
            model, info = cls.from_pretrained(
                folder,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{folder}: cannot be loaded as {cls.__name__}: {first_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if info[problem]:
            names = sorted(info[problem])
            raise InputError(
                f"{folder}: weights do not belong to its config.json, {len(names)} "
                f"{problem.replace('_', ' ')} such as {names[0]}; save the model again with save_pretrained"
            )
    check_finite(model, str(folder))
    return model.eval().requires_grad_(False)


def transformer_class(folder: Path, config: dict[str, Any]) -> Any:
    """The diffusers class that config.json names. Raises InputError for one that is not a known DiT."""
    name = config.get("_class_name")
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"  # what DiT was called before diffusers 0.28
    if name not in _KNOWN:
        raise InputError(
            f"{folder}/config.json: class {name!r} is no DiT we know, expected {', '.join(_KNOWN)}"
        )
    return getattr(diffusers, name)


def check_safetensors(folder: Path) -> None:
    """Every safetensors file in ``folder`` is whole, and every file its index names is there.

    The header of a safetensors file states its length: a truncated one is found without reading it.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
        if pickled:
            raise InputError(f"{folder}: only safetensors is read, found {pickled[0]}; {CONVERT}")
        raise InputError(
            f"{folder}: has no weights; expected diffusion_pytorch_model.safetensors beside config.json"
        )
    if (folder / _INDEX).is_file():
        for name in sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: the weight file {name} is missing; download or copy it again")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{file}: truncated or not a safetensors file ({first_line(error)}); copy it again"
            ) from error


def check_finite(model: nn.Module, what: str) -> None:
    """Raises InputError naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # The sum of a tensor is finite only if all of it is, unless it overflows: then look closely.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise InputError(
                f"{what}: {name} holds NaN or infinite values; the checkpoint is broken, get another"
            )


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """No bar for a load of milliseconds, and no paragraphs about what becomes a one-line error of ours."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises InputError when it is missing or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from error
    except ValueError as error:
        raise InputError(
            f"{path}: not valid JSON ({first_line(error)}); download or write it again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def first_line(error: Exception) -> str:
    """The first line of an error's text, for a one-line message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
