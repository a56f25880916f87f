"""The regressions: each changes a copy of a finished run as a fault in a toolchain would."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from ditpress.calibrate.calls import load_calls
from ditpress.export.onnx import export_transformer
from ditpress.kernels.arguments import code_entries
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack, unpack
from ditpress.kernels.wrap import main_linear
from ditpress.load.checkpoint import save_transformer
from ditpress.load.weights import load_transformer

Damage = Callable[[QuantizedLinear], None]


@dataclass(frozen=True)
class Plant:
    """``apply`` changes the run in a folder, and one of ``rules`` must say so.

    Without rules it changes what the figures are measured with: the comparison must be refused, and name the
    ``setting``.
    """

    name: str
    text: str
    apply: Callable[[Path], None]
    rules: frozenset[str] = frozenset()
    setting: str = ""


def scales_off(layer: QuantizedLinear) -> None:
    """Every scale 5 % too large."""
    layer.scale.mul_(1.05)


def two_bits(layer: QuantizedLinear) -> None:
    """Four of the codes of every row: those nearest to ±1 and ±1/3 of its largest value."""
    entries = code_entries(layer.codebook, layer.table)
    tables = layer.codebook.double().view(-1, entries)
    coarse = torch.stack([_coarse(values) for values in tables])
    own = torch.zeros(layer.out_features, dtype=torch.long) if layer.table is None else layer.table.long()
    codes = unpack(layer.codes, entries, layer.in_features)
    layer.codes.copy_(pack(coarse[own].gather(1, codes.long()).to(torch.uint8), entries))


def swapped_channels(layer: QuantizedLinear) -> None:
    """The first two output channels change places, as by a wrong order of heads or of chunks."""
    for buffer in (layer.codes, layer.scale, layer.table):
        if buffer is not None:
            buffer[[0, 1]] = buffer[[1, 0]]


def shipped(name: str, damage: Damage) -> Callable[[Path], None]:
    """Damage one layer of the model, and export it: checkpoint and ONNX file agree, both are wrong."""

    def apply(out: Path) -> None:
        transformer = load_transformer(out / "model" / "transformer")
        damage(main_linear(transformer.get_submodule(name)))
        save_transformer(transformer, out / "model" / "transformer")
        (calls,) = out.glob("stages/00-calibration-*")
        export_transformer(
            transformer, out / "onnx" / "transformer", [call.kwargs for call in load_calls(calls)]
        )

    return apply


def stale_onnx(out: Path) -> None:
    """A newer checkpoint, as after a second round of training, beside the ONNX file of the old one."""
    transformer = load_transformer(out / "model" / "transformer")
    generator = torch.Generator().manual_seed(1)
    for module in transformer.modules():
        if isinstance(module, QuantizedLinear):
            module.scale.mul_(1 + 0.05 * torch.randn(module.scale.shape, generator=generator))
    save_transformer(transformer, out / "model" / "transformer")


def other_scheduler(out: Path) -> None:
    """Another noise schedule in the pipeline that ships."""
    path = out / "model" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["beta_schedule"] = "squaredcos_cap_v2" if config["beta_schedule"] == "linear" else "linear"
    path.write_text(json.dumps(config), encoding="utf-8")


def fewer_steps(out: Path) -> None:
    """Half of the denoising steps in the recipe of the run."""
    path = out / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["validation"]["steps"] = (recipe["validation"]["steps"] or 25) // 2
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def _coarse(values: torch.Tensor) -> torch.Tensor:
    """For every entry of a codebook the nearest of the four that are left."""
    largest = values.abs().max()
    levels = torch.stack([-largest, -largest / 3, largest / 3, largest])
    kept = (values[None] - levels[:, None]).abs().argmin(1)
    return kept[(values[:, None] - values[kept]).abs().argmin(1)]
