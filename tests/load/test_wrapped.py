"""Models with wrapped linears: same function, same roles, same bits after saving and loading."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from test_anatomy import FAMILIES, make
from tiny_dit import dit_inputs, tiny_dit, tiny_pipeline
from torch import nn
from wrapped_models import (
    RANK,
    hadamard_for,
    norm_outputs,
    rotate,
    scale_channels,
    shift_inputs,
    split_off_branch,
    transform_of,
    wrap_dit,
)

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.random_weights import random_linear
from ditpress.kernels.wrap import Wrapper, layers_of
from ditpress.load import (
    Denoiser,
    anatomy_of,
    load_compressed,
    load_denoiser,
    save_pipeline,
    save_transformer,
)
from ditpress.load.anatomy import plain_name
from ditpress.load.modules import replace_module
from ditpress.load.quantization_config import DitpressConfig
from ditpress.load.weights import load_transformer

WEIGHTS = "diffusion_pytorch_model.safetensors"


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def rotatable(model: nn.Module) -> list[str]:
    """Linears of a width that has a Hadamard matrix."""
    found = []
    for name in anatomy_of(model).linears(model):
        try:
            hadamard_for(model.get_submodule(name).in_features, torch.Generator())
        except InputError:
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["rotate", "scale", "shift", "low rank", "all"])
def test_wrapping_every_linear_changes_nothing(family: str, how: str) -> None:
    model, inputs = make(family)
    before = model(**inputs)[0]
    roles = anatomy_of(model).linears(model)
    names = rotatable(model)
    assert len(names) > 0.8 * len(roles)
    generator = torch.Generator().manual_seed(1)
    depth = 0
    for name in names:
        inner, depth = name, 0
        linear = model.get_submodule(name)
        if how in ("scale", "all"):
            scale_channels(model, inner, generator)
            inner, depth = f"{inner}.linear", depth + 1
        if how in ("rotate", "all"):
            rotate(model, [inner], hadamard_for(linear.in_features, generator))
            inner, depth = f"{inner}.linear", depth + 1
        if how in ("shift", "all") and linear.bias is not None:
            shift_inputs(model, inner, 0.17)
            inner, depth = f"{inner}.linear", depth + 1
        if how in ("low rank", "all"):
            split_off_branch(model, inner, generator)
    after = model(**inputs)[0]
    assert not torch.equal(after, before)
    assert largest(after, before) < 1e-5
    wrapped = anatomy_of(model).linears(model)
    assert {plain_name(name): role for name, role in wrapped.items()} == roles
    assert [plain_name(name) for name in wrapped] == list(roles)
    assert all(type(model.get_submodule(name)) is nn.Linear for name in wrapped)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_names_of_plain_models_are_their_names(family: str) -> None:
    model, _ = make(family)
    for name in anatomy_of(model).linears(model):
        assert plain_name(name) == name
        for suffix in (".linear", ".linear.linear", ".down", ".linear.up", ".linear.transform"):
            assert plain_name(name + suffix) == name


def test_groups_pass_only_what_their_fold_passes() -> None:
    model = tiny_dit()
    generator = torch.Generator().manual_seed(0)
    block = "transformer_blocks.0."
    groups = anatomy_of(model).smooth_groups(model)
    count = len(groups)
    assert count == 6
    # Before the sources: the fold changes the rows of the linear, whatever it reads.
    rotate(model, [f"{block}norm1.linear"], hadamard_for(16, generator))
    scale_channels(model, f"{block}attn1.to_v", generator)  # also a reader of the first group: that one ends
    names = {(group.linears, group.source) for group in anatomy_of(model).smooth_groups(model)}
    first = {entry for entry in names if entry[1].startswith(block)}
    assert first == {
        ((f"{block}ff.net.0.proj",), f"{block}norm1.linear.linear"),
        ((f"{block}attn1.to_out.0",), f"{block}attn1.to_v.linear"),
    }
    assert len(names) == count - 1
    split_off_branch(model, f"{block}attn1.to_v.linear", generator)  # a branch makes rows of its own
    norm_outputs(model, f"{block}norm1.linear", generator)
    assert len(anatomy_of(model).smooth_groups(model)) == count - 3
    norm_outputs(model, "transformer_blocks.1.ff.net.0.proj", generator)  # after a reader: no matter
    readers = {name for group in anatomy_of(model).smooth_groups(model) for name in group.linears}
    assert "transformer_blocks.1.ff.net.0.proj.linear" in readers


@pytest.fixture
def compressed() -> Denoiser:
    """Wrapped, with low-bit linears and branches inside, and one linear with a norm."""
    denoiser = load_denoiser(tiny_pipeline(num_attention_heads=4, attention_head_dim=16))
    model = denoiser.transformer
    wrap_dit(model)
    norm_outputs(model, "transformer_blocks.1.norm1.linear", torch.Generator().manual_seed(4))
    branches = [name for name, module in model.named_modules() if name.endswith((".down", ".up"))]
    main = [name for name in denoiser.anatomy.linears(model) if ".attn1." in name or ".ff." in name]
    for seed, name in enumerate([*main, *branches[:4]]):
        linear = model.get_submodule(name)
        format, group = ("int8", linear.in_features) if name in branches else ("int4", 16)
        layer = random_linear(
            linear.in_features,
            linear.out_features,
            format,
            group,
            "int8",
            bias=linear.bias is not None,
            seed=seed,
        )
        replace_module(model, linear, layer)
    return denoiser


def test_saved_and_loaded_is_bit_equal(compressed: Denoiser, tmp_path: Path) -> None:
    model = compressed.transformer
    save_pipeline(compressed, tmp_path / "model")
    loaded = load_compressed(tmp_path / "model").transformer
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert {name: type(module) for name, module in loaded.named_modules()} == kinds
    for name, module in model.named_modules():
        if isinstance(module, Wrapper):
            assert loaded.get_submodule(name).describe() == module.describe()
    prefix = "transformer_blocks.0.attn1.to_"
    assert transform_of(loaded, f"{prefix}q") is transform_of(loaded, f"{prefix}v")
    stored = load_file(tmp_path / "model/transformer" / WEIGHTS)
    assert [name for name in stored if name.startswith(prefix) and ".transform." in name] == [
        f"{prefix}q.transform.signs"
    ]
    inputs = dit_inputs(model)
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])


def test_the_config_tells_what_is_wrapped(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())["quantization_config"]
    last = "transformer_blocks.0.ff.net.2"
    assert {name: entry for name, entry in config["wrappers"].items() if name.startswith(last)} == {
        last: {"kind": "transformed", "transform": {"kind": "channel-scale"}},
        f"{last}.linear": {"kind": "transformed", "transform": {"kind": "hadamard", "factors": [256]}},
        f"{last}.linear.linear": {"kind": "transformed", "transform": {"kind": "shift"}},
        f"{last}.linear.linear.linear": {"kind": "low-rank", "rank": RANK},
    }
    assert config["wrappers"]["transformer_blocks.1.norm1.linear"] == {"kind": "normed", "eps": 1e-5}
    assert f"{last}.linear.linear.linear.linear" in config["layers"]


def test_numbers_of_wrappers_keep_their_type_in_bfloat16(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    loaded = DiTTransformer2DModel.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    assert loaded.proj_out_2.weight.dtype == torch.bfloat16
    name = "transformer_blocks.0.ff.net.2"
    scale, original = transform_of(loaded, name), transform_of(compressed.transformer, name)
    assert torch.equal(scale.factors, original.factors)
    assert torch.equal(
        loaded.transformer_blocks[1].norm1.linear.gain,
        compressed.transformer.transformer_blocks[1].norm1.linear.gain,
    )


def test_folders_of_schema_1_still_load(tmp_path: Path) -> None:
    model = load_denoiser(tiny_pipeline()).transformer
    linear = model.transformer_blocks[0].attn1.to_q
    replace_module(model, linear, random_linear(16, 16, "int4", 8, "int8", seed=1))
    save_transformer(model, tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    assert config["quantization_config"].pop("wrappers") == {}
    config["quantization_config"]["schema"] = 1
    path.write_text(json.dumps(config))
    loaded = load_transformer(tmp_path / "model")
    inputs = dit_inputs(model)
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])


def test_dequantized_keeps_its_wrappers_and_its_function(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    model = DiTTransformer2DModel.from_pretrained(tmp_path / "model")
    weights = {n: m.dequantize() for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    model.dequantize()
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in weights.items())
    inputs = dit_inputs(model)
    expected = model(**inputs)[0]
    label = model.config["quantization_config"]
    assert label["layers"] == {}
    assert label["wrappers"] == DitpressConfig.of(compressed.transformer).wrappers
    save_transformer(model, tmp_path / "float")
    assert torch.equal(load_transformer(tmp_path / "float")(**inputs)[0], expected)


def test_damaged_wrappers_are_named(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    path = tmp_path / "model/config.json"
    good = json.loads(path.read_text())
    wrappers = good["quantization_config"]["wrappers"]
    name = "transformer_blocks.0.ff.net.0.proj"

    def refused(**changes: object) -> str:
        changed = good["quantization_config"] | {"wrappers": wrappers | changes}
        path.write_text(json.dumps(good | {"quantization_config": changed}))
        with pytest.raises(InputError) as caught:
            load_transformer(tmp_path / "model")
        return str(caught.value)

    assert "unknown wrapper 'lower'" in refused(**{name: {"kind": "lower"}})
    assert "nothing.here is not in" in refused(**{"nothing.here": wrappers[name]})
    assert "transformer_blocks.0.ff is a FeedForward, expected a linear" in refused(
        **{"transformer_blocks.0.ff": wrappers[name]}
    )
    float_branch = "transformer_blocks.1.ff.net.0.proj"
    assert "expected shape" in refused(**{float_branch: {"kind": "low-rank", "rank": RANK + 1}})


def test_a_broken_sign_is_found(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    stored = load_file(path)
    key = "transformer_blocks.0.attn1.to_q.transform.signs"
    save_file(stored | {key: stored[key].float()}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"to_q\.transform\.signs: stored as torch\.float32, expected"):
        load_transformer(tmp_path / "model")


def test_copies_of_a_wrapped_model_share_what_it_shares(compressed: Denoiser) -> None:
    twin = copy.deepcopy(compressed.transformer)
    prefix = "transformer_blocks.1.attn1.to_"
    assert transform_of(twin, f"{prefix}q") is transform_of(twin, f"{prefix}k")
    assert len(list(layers_of(twin.get_submodule("transformer_blocks.0.ff.net.2")))) == 5
