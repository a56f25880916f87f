"""A narrower model describes itself in config.json, and comes back; a damaged description is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from tiny_dit import dit_inputs, tiny_dit, tiny_flux, tiny_pixart, tiny_sd3
from torch import Tensor, nn

from ditpress.compress.prune.groups import Kept, KeptHeads, KeptHidden, KeptResidual, cut
from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.random_weights import random_linear
from ditpress.load.checkpoint import save_transformer
from ditpress.load.modules import replace_module
from ditpress.load.quantization_config import DitpressConfig
from ditpress.load.residual import ResidualGroup
from ditpress.load.weights import load_transformer
from ditpress.load.widths import HiddenGroup, cut_sizes, resize, width_groups


def make(family: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    if family == "dit":
        model = tiny_dit()
        return model, dit_inputs(model)
    return {"pixart": tiny_pixart, "sd3": tiny_sd3, "flux": tiny_flux}[family]()


def narrowed(model: nn.Module, first: int = 0) -> None:
    """One head of two from group ``first`` on, half of all else; different widths in different blocks."""
    kept: list[Kept] = []
    for group in width_groups(model)[first:]:
        if isinstance(group, HiddenGroup):
            kept.append(KeptHidden(group, torch.arange(group.hidden) % 2 == 1))
        elif isinstance(group, ResidualGroup):
            kept.append(KeptResidual(group, torch.arange(group.width) % 2 == 1))
        else:
            channels = torch.zeros(group.heads, group.head_dim, dtype=torch.bool)
            channels[1] = True
            kept.append(KeptHeads(group, channels, channels))
    cut(model, kept)


def low_bit(linear: nn.Linear) -> QuantizedLinear:
    """Random numbers of the same shape."""
    return random_linear(linear.in_features, linear.out_features, "int4", 8, "int8", bias=True)


def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("family", ["dit", "pixart", "sd3", "flux"])
def test_narrower_models_come_back(family: str, first: int, tmp_path: Path) -> None:
    """Also with streams, and the first block, as wide as they were."""
    model, inputs = make(family)
    assert cut_sizes(model) == {}
    full = {group.name: group.sizes for group in width_groups(model)}
    narrowed(model, first)
    expected = run(model, inputs)
    save_transformer(model, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())["quantization_config"]
    assert config["schema"] == 3
    assert config["pruned"] == cut_sizes(model)
    assert set(config["pruned"]) == set(list(full)[first:])
    loaded = load_transformer(tmp_path / "model")
    assert torch.equal(run(loaded, inputs), expected)
    # And again, and by diffusers alone once the package is imported.
    save_transformer(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["quantization_config"] == config
    plain = type(model).from_pretrained(tmp_path / "again")
    assert torch.equal(run(plain, inputs), expected)


def test_quantized_after_pruning_comes_back(tmp_path: Path) -> None:
    model, inputs = make("dit")
    narrowed(model)
    for block in model.transformer_blocks:
        for linear in (block.ff.net[2], block.attn1.to_q, block.attn1.to_out[0]):
            replace_module(model, linear, low_bit(linear))
    expected = run(model, inputs)
    sizes = cut_sizes(model)
    assert len(sizes) == 5
    save_transformer(model, tmp_path / "model")
    loaded = load_transformer(tmp_path / "model")
    assert isinstance(loaded.transformer_blocks[0].ff.net[2], QuantizedLinear)
    assert torch.equal(run(loaded, inputs), expected)
    # In float again it is still narrower, and says so.
    loaded.dequantize()
    assert DitpressConfig.of(loaded).pruned == sizes
    loaded.save_pretrained(tmp_path / "float")
    again = DiTTransformer2DModel.from_pretrained(tmp_path / "float")
    assert torch.equal(run(again, inputs), run(loaded, inputs))


def test_models_of_full_width_are_described_as_before(tmp_path: Path) -> None:
    model, _ = make("dit")
    save_transformer(model, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())["quantization_config"]
    assert config["schema"] == 2
    assert "pruned" not in config


def test_damaged_descriptions_are_refused(tmp_path: Path) -> None:
    model, _ = make("dit")
    narrowed(model)
    save_transformer(model, tmp_path / "model")
    path = tmp_path / "model/config.json"
    good = json.loads(path.read_text())
    pruned = good["quantization_config"]["pruned"]

    def refused(changed: object) -> str:
        quantization = good["quantization_config"] | {"pruned": changed}
        path.write_text(json.dumps(good | {"quantization_config": quantization}))
        with pytest.raises(InputError) as caught:
            load_transformer(tmp_path / "model")
        return str(caught.value)

    attention, mlp, stream = "transformer_blocks.0.attn1", "transformer_blocks.0.ff", "pos_embed"
    assert "pruned is a list, expected sizes by name" in refused([1])
    assert (
        "pruned names 'nothing.here', which is no attention, MLP or stream of DiTTransformer2DModel"
        in refused(pruned | {"nothing.here": {"hidden": 8}})
    )
    for size in (0, -1, 65, True, 8.0, "8", None, [8]):
        assert "expected an integer from 1 to 64; it is damaged" in refused(pruned | {mlp: {"hidden": size}})
    assert "expected an integer from 1 to 2" in refused(pruned | {attention: {"heads": 3, "head_dim": 8}})
    for entry in ({}, [], 3, {"heads": 1}, {"hidden": 3}, {"heads": 1, "head_dim": 8, "more": 1}):
        assert "expected heads and head_dim; it is damaged" in refused(pruned | {attention: entry})
    for size in (0, 17, "8"):
        assert f"pruned.{stream}.residual is {size!r}, expected an integer from 1 to 16" in refused(
            pruned | {stream: {"residual": size}}
        )
    # Sizes that are possible, but not those of the tensors.
    assert "transformer_blocks.0.ff.net.0.proj" in refused(pruned | {mlp: {"hidden": 16}})
    assert "pos_embed" in refused(pruned | {stream: {"residual": 4}})
    assert "pos_embed" in refused({name: sizes for name, sizes in pruned.items() if name != stream})
    assert "transformer_blocks.0" in refused({stream: pruned[stream]})
    assert "cannot be loaded as DiTTransformer2DModel" in refused({})
    path.write_text(json.dumps(good))
    load_transformer(tmp_path / "model")


def test_resizing_is_for_plain_linears() -> None:
    model, _ = make("dit")
    before = copy.deepcopy(model.state_dict())
    linear = model.transformer_blocks[0].ff.net[2]
    replace_module(model, linear, low_bit(linear))
    with pytest.raises(InputError, match=r"ff\.net\.2 is a QuantizedLinear, expected a plain linear"):
        resize(model, {"transformer_blocks.0.ff": {"hidden": 8}})
    assert before.keys() != model.state_dict().keys()
