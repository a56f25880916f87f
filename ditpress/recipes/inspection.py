"""``ditpress inspect`` and ``ditpress sample``: look at a model, look at its images."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ditpress.errors import InputError
from ditpress.files import write_atomic
from ditpress.load.anatomy import plain_name
from ditpress.load.denoiser import load_denoiser
from ditpress.recipes.storage import storage
from ditpress.validate.grid import png_bytes, to_pil
from ditpress.validate.size import stored_modules


def inspect_model(model: str, *, scheduler: str | Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """What ``model`` is made of, as plain data.

    Raises:
        InputError: no such model, or not a DiT.
    """
    denoiser = load_denoiser(model, scheduler=scheduler, device=device)
    transformer = denoiser.transformer
    layers: Counter[tuple[str, str]] = Counter()
    parameters: Counter[tuple[str, str]] = Counter()
    for name, role in denoiser.anatomy.linears(transformer).items():
        module = transformer.get_submodule(name)
        row = (role.value, storage(transformer.get_submodule(plain_name(name))))
        layers[row] += 1
        parameters[row] += module.in_features * module.out_features
    stored = stored_modules(transformer).values()
    total = sum(module.parameters for module in stored)
    return {
        "model": denoiser.source.spec,
        "kind": denoiser.source.kind,
        "family": denoiser.anatomy.family,
        "class": type(transformer).__name__,
        "pipeline": type(denoiser.pipeline).__name__,
        "scheduler": type(denoiser.pipeline.scheduler).__name__,
        "fingerprint": denoiser.fingerprint,
        "parameters": total,
        "bytes": sum(module.bits for module in stored) // 8,
        "effective_bits": sum(module.bits for module in stored) / total,
        "default_steps": denoiser.default_steps,
        "default_guidance": denoiser.default_guidance,
        "linears": [
            {"role": role, "format": form, "layers": count, "parameters": parameters[role, form]}
            for (role, form), count in layers.items()
        ],
    }


def sample_grid(
    model: str,
    out: Path,
    *,
    count: int = 16,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    scheduler: str | Path | None = None,
    device: str = "cpu",
) -> None:
    """Draw ``count`` images with the seeds ``seed``, ``seed + 1``, ... into the PNG file ``out``.

    Raises:
        InputError: no such model, ``out`` is no .png name, or the model has no VAE to make images with.
    """
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: expected a file name that ends in .png")
    denoiser = load_denoiser(model, scheduler=scheduler, device=device, seed=seed)
    images = denoiser.sample(range(seed, seed + count), steps=steps, guidance=guidance)
    if images.shape[1] not in (1, 3):
        raise InputError(
            f"{model}: draws {images.shape[1]} channels, not images; give a pipeline folder with a VAE"
        )
    write_atomic(out, png_bytes(tile(images)))


def tile(images: Tensor) -> Image.Image:
    """Images [n, C, H, W] in one picture, about as wide as high, one pixel of white between them."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = torch.ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[:, top : top + height, left : left + width] = image
    return to_pil(sheet)
