"""A hash that identifies a model: what a resumed run compares."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 24  # values hashed at a time: no second copy of a large tensor


def fingerprint_of(transformer: Any, scheduler: Any = None) -> str:
    """sha256 over class, configuration and every tensor of ``transformer``, and the scheduler's settings.

    Tensors are taken in the order of their names; one that is shared counts once. Where the files lie, and
    which version of diffusers wrote them, does not matter.
    """
    digest = hashlib.sha256()
    for part in (transformer, scheduler):
        if part is not None:
            config = {k: v for k, v in part.config.items() if not k.startswith("_")}
            text = json.dumps([type(part).__name__, config], sort_keys=True, default=str)
            digest.update(text.encode())
    tensors = dict(transformer.named_parameters()) | dict(transformer.named_buffers())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        for piece in tensor.reshape(-1).split(_CHUNK):
            digest.update(_bytes(piece))
    return digest.hexdigest()


def _bytes(piece: Tensor) -> Any:
    return piece.cpu().contiguous().view(torch.uint8).numpy()
