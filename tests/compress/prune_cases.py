"""What the tests of width pruning share: float64 models, and the names of what belongs together, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ditpress.load.anatomy import anatomy_of

# Attention -> what reads its heads; MLP -> what reads its hidden units, and from which column on.
ATTENTION: dict[str, dict[str, tuple[str, ...]]] = {
    "dit": {f"transformer_blocks.{i}.attn1": (f"transformer_blocks.{i}.attn1.to_out.0",) for i in range(2)},
    "pixart": {
        f"transformer_blocks.{i}.{name}": (f"transformer_blocks.{i}.{name}.to_out.0",)
        for i in range(2)
        for name in ("attn1", "attn2")
    },
    "sd3": {
        "transformer_blocks.0.attn": (
            "transformer_blocks.0.attn.to_out.0",
            "transformer_blocks.0.attn.to_add_out",
        ),
        "transformer_blocks.1.attn": (
            "transformer_blocks.1.attn.to_out.0",
            "transformer_blocks.1.attn.to_add_out",
        ),
        "transformer_blocks.1.attn2": ("transformer_blocks.1.attn2.to_out.0",),
        "transformer_blocks.2.attn": ("transformer_blocks.2.attn.to_out.0",),
    },
    "flux": {
        f"transformer_blocks.{i}.attn": (
            f"transformer_blocks.{i}.attn.to_out.0",
            f"transformer_blocks.{i}.attn.to_add_out",
        )
        for i in range(2)
    }
    | {f"single_transformer_blocks.{i}.attn": (f"single_transformer_blocks.{i}.proj_out",) for i in range(2)},
}
HIDDEN: dict[str, dict[str, tuple[str, int]]] = {
    "dit": {f"transformer_blocks.{i}.ff": (f"transformer_blocks.{i}.ff.net.2", 0) for i in range(2)},
    "pixart": {f"transformer_blocks.{i}.ff": (f"transformer_blocks.{i}.ff.net.2", 0) for i in range(2)},
    "sd3": {
        f"transformer_blocks.{i}.{name}": (f"transformer_blocks.{i}.{name}.net.2", 0)
        for i, name in ((0, "ff"), (1, "ff"), (2, "ff"), (0, "ff_context"), (1, "ff_context"))
    },
    "flux": {
        f"transformer_blocks.{i}.{name}": (f"transformer_blocks.{i}.{name}.net.2", 0)
        for i in range(2)
        for name in ("ff", "ff_context")
    }
    | {f"single_transformer_blocks.{i}": (f"single_transformer_blocks.{i}.proj_out", 32) for i in range(2)},
}


def denoiser_of(model: nn.Module) -> Any:
    return SimpleNamespace(transformer=model, anatomy=anatomy_of(model))


def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0].double()


def doubled(model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Both in float64."""
    return model.double(), {
        name: value.double() if value.is_floating_point() else value for name, value in inputs.items()
    }
