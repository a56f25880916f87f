"""A tiny model of every family, what it takes, and recorded calls of it."""

from __future__ import annotations

from typing import Any

import torch
from tiny_dit import dit_inputs, tiny_dit, tiny_flux, tiny_pixart, tiny_sd3

from ditpress.calibrate.calls import Call

FAMILIES = ("dit", "pixart", "sd3", "flux")


def make(family: str, **config: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    if family == "dit":
        model = tiny_dit(**config)
        return model, dit_inputs(model)
    return {"pixart": tiny_pixart, "sd3": tiny_sd3, "flux": tiny_flux}[family]()


def calls_of(inputs: dict[str, Any], count: int = 3) -> list[Call]:
    """The same inputs at other timesteps."""
    size = float(inputs["timestep"].max())
    times = [size * (index + 1) / count for index in range(count)]
    return [
        Call(t, {**inputs, "timestep": torch.full_like(inputs["timestep"], int(t) if size > 1 else t)})
        for t in times
    ]
