"""The optimizers of training: AdamW, and AdamW with moments of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ditpress.errors import InputError

BETAS = (0.9, 0.99)
OptimizerName = Literal["adamw", "adamw8bit"]


def make_optimizer(
    name: OptimizerName, groups: Sequence[dict[str, Any]], weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer of ``groups``, each with its "params" and "lr".

    "adamw" is Loshchilov & Hutter 2019; "adamw8bit" keeps both moments in blocks of 8 bits (Dettmers et al.
    2022, "8-bit Optimizers via Block-wise Quantization"), of bitsandbytes: a quarter of their memory.

    Raises:
        InputError: 8 bits on a CPU, or without bitsandbytes.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=BETAS, weight_decay=weight_decay)
    device = groups[0]["params"][0].device
    if device.type != "cuda":
        raise InputError(
            f"training.optimizer adamw8bit: its kernels need a GPU, the model is on {device.type}; give "
            "--device cuda, or set adamw"
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "training.optimizer adamw8bit: needs bitsandbytes, which is not installed; pip install "
            "bitsandbytes, or set adamw"
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(groups, betas=BETAS, weight_decay=weight_decay)
    return made
