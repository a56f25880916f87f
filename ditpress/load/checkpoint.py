"""Writing compressed models, and reading them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ditpress.files import atomic_folder
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.load.quantizer import label


def save_pipeline(denoiser: Denoiser, folder: Path | str) -> None:
    """Write the pipeline as a diffusers folder in safetensors, which appears complete or not at all.

    The transformer may be quantized in part or not at all. Shared embedders are stored once. Float weights
    that are exact in float16 are stored so; the loaded model computes the same bits. A transformer in float
    throughout is written as diffusers writes it, for those who load it without ditpress.

    Raises:
        InputError: ``folder`` cannot be written.
    """
    label(denoiser.transformer, plain=True)
    with atomic_folder(folder) as scratch:
        denoiser.pipeline.save_pretrained(scratch, safe_serialization=True)
        _forget_paths(scratch)


def save_transformer(transformer: Any, folder: Path | str) -> None:
    """Like ``save_pipeline`` for the transformer alone; ``load_transformer`` reads it."""
    label(transformer)
    with atomic_folder(folder) as scratch:
        transformer.save_pretrained(scratch, safe_serialization=True)
        _forget_paths(scratch)


def load_compressed(folder: Path | str) -> Denoiser:
    """The denoiser in a run folder, or in a folder that ``save_pipeline`` wrote. Raises InputError."""
    return load_denoiser(str(folder))


def _forget_paths(folder: Path) -> None:
    """Diffusers notes in every config where the model was loaded from: nobody else's business.

    Nor does it take an empty ``quantization_config``, which stands for none.
    """
    for file in (*folder.rglob("config.json"), *folder.rglob("model_index.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        unquantized = config.get("quantization_config") == {}
        if unquantized:
            del config["quantization_config"]
        if config.pop("_name_or_path", None) is not None or unquantized:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
