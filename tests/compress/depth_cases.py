"""A tiny DiT whose blocks are cut out, with blocks that do nothing."""

from __future__ import annotations

from typing import Any

import torch
from tiny_dit import tiny_pipeline

from ditpress.calibrate.calls import Call, record_calls
from ditpress.compress import PruneDepth, parse_stage
from ditpress.load import Denoiser, load_denoiser

LEARNED = {
    "rows": 6,
    "rank": 2,
    "training": {"steps": 60, "calls": 2, "learning_rate": 1e-3, "ema": 0.9},
}


def denoiser(layers: int = 4, seed: int = 3) -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=seed, num_layers=layers))


def stage(**fields: Any) -> PruneDepth:
    parsed = parse_stage({"prune-depth": fields})
    assert isinstance(parsed, PruneDepth)
    return parsed


def recorded(model: Denoiser, steps: int = 4) -> list[Call]:
    return record_calls(model, samples=3, steps=steps, guidance=2.0, seed=0)


def plant_identities(transformer: Any, blocks: tuple[int, ...]) -> None:
    """Gates of zero: what these blocks add to the hidden states is nothing."""
    with torch.no_grad():
        for index in blocks:
            linear = transformer.transformer_blocks[index].norm1.linear
            for chunk in (2, 5):  # gate_msa, gate_mlp
                linear.weight.chunk(6)[chunk].zero_()
                linear.bias.chunk(6)[chunk].zero_()


def smaller(model: Any, kept: dict[str, list[int]], **config: Any) -> Any:
    """The smaller model from its plain class, the kept blocks under their new names."""
    state = {}
    for name, tensor in model.state_dict().items():
        head, _, rest = name.partition(".")
        if head in kept:
            index, _, rest = rest.partition(".")
            if int(index) in kept[head]:
                state[f"{head}.{kept[head].index(int(index))}.{rest}"] = tensor
        else:
            state[name] = tensor
    built = type(model).from_config({**model.config, **config})
    built.load_state_dict(state)
    return built.eval()
