"""Saving and loading compressed pipelines: the same bits, shared parts once, whole folders only."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, DiTTransformer2DModel
from safetensors import safe_open
from tiny_dit import dit_inputs, tiny_pipeline
from torch import nn

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.random_weights import random_linear
from ditpress.load import Denoiser, Role, load_compressed, load_denoiser, save_pipeline, save_transformer
from ditpress.load import checkpoint as checkpoint_module
from ditpress.load.weights import load_transformer

WEIGHTS = "diffusion_pytorch_model.safetensors"


def quantize(
    model: nn.Module, names: list[str], format: str, group: int, activation: str, fold_scales: bool = False
) -> None:
    """Random codes and scales in the places of ``names``: what is stored must come back, whatever it is."""
    for name in names:
        linear = model.get_submodule(name)
        layer = random_linear(
            linear.in_features,
            linear.out_features,
            format,
            group,
            activation,
            bias=linear.bias is not None,
            fold_scales=fold_scales,
        )
        if linear.bias is not None:
            layer.bias.copy_(linear.bias)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)


@pytest.fixture
def compressed() -> Denoiser:
    denoiser = load_denoiser(tiny_pipeline())
    roles = denoiser.anatomy.linears(denoiser.transformer)
    model = denoiser.transformer
    quantize(model, [n for n, r in roles.items() if r in (Role.QKV, Role.MLP_IN)], "int4", 8, "int8")
    quantize(model, [n for n, r in roles.items() if r is Role.MODULATION], "int8", 16, "none")
    quantize(model, ["transformer_blocks.1.ff.net.2"], "fp4-e2m1", 16, "none")
    quantize(model, ["transformer_blocks.0.ff.net.2"], "vq-256x4", 16, "int8", True)
    quantize(model, ["transformer_blocks.0.attn1.to_out.0"], "ternary", 16, "int8")
    quantize(model, ["transformer_blocks.1.attn1.to_out.0"], "vq-64x2", 8, "none")
    return denoiser


def test_a_compressed_pipeline_comes_back_bit_equal(compressed: Denoiser, tmp_path: Path) -> None:
    save_pipeline(compressed, tmp_path / "model")
    loaded = load_compressed(tmp_path / "model")
    before, after = compressed.transformer.state_dict(), loaded.transformer.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    inputs = dit_inputs(loaded.transformer)
    assert torch.equal(loaded.transformer(**inputs)[0], compressed.transformer(**inputs)[0])
    assert torch.equal(loaded.sample([1, 2], steps=2), compressed.sample([1, 2], steps=2))


@pytest.mark.parametrize("cls", [DiTTransformer2DModel, AutoModel])
def test_plain_diffusers_loads_it(compressed: Denoiser, tmp_path: Path, cls: type) -> None:
    save_pipeline(compressed, tmp_path)
    loaded = cls.from_pretrained(str(tmp_path / "transformer"))
    inputs = dit_inputs(loaded)
    assert torch.equal(loaded(**inputs)[0], compressed.transformer(**inputs)[0])
    assert DiffusionPipeline.from_pretrained(tmp_path).transformer.config["quantization_config"].schema == 2


def test_codes_and_scales_keep_their_dtype_in_bfloat16(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    loaded = DiTTransformer2DModel.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    assert loaded.proj_out_2.weight.dtype == torch.bfloat16
    layer, original = (
        m.get_submodule("transformer_blocks.0.attn1.to_q") for m in (loaded, compressed.transformer)
    )
    for name in ("codes", "scale", "codebook", "bias"):
        assert torch.equal(getattr(layer, name), getattr(original, name)), name
    own = loaded.get_submodule("transformer_blocks.0.ff.net.2")
    assert own.codebook.dtype == torch.int8
    assert int(own.codebook.abs().max()) > 0


def test_config_says_what_is_quantized(compressed: Denoiser, tmp_path: Path) -> None:
    save_pipeline(compressed, tmp_path / "model")
    config = json.loads((tmp_path / "model/transformer/config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["schema"]) == ("ditpress", 2)
    expected = {n for n, m in compressed.transformer.named_modules() if isinstance(m, QuantizedLinear)}
    assert set(config["layers"]) == expected
    assert config["layers"]["transformer_blocks.0.attn1.to_q"] == {
        "format": "int4",
        "group_size": 8,
        "activation": "int8",
    }
    assert config["layers"]["transformer_blocks.0.ff.net.2"] == {
        "format": "vq-256x4",
        "group_size": 16,
        "activation": "int8",
        "fold_scales": True,
    }
    assert config["shared"] == [["transformer_blocks.0.norm1.emb", "transformer_blocks.1.norm1.emb"]]


def test_no_path_of_this_machine_is_written(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "source")
    save_pipeline(load_denoiser(str(tmp_path / "source")), tmp_path / "target")
    texts = [file.read_text() for file in (tmp_path / "target").rglob("*.json")]
    assert len(texts) >= 3
    assert not any(str(tmp_path) in text for text in texts)


@pytest.mark.parametrize("half", [False, True])
def test_a_float_model_is_written_as_diffusers_writes_it(half: bool, tmp_path: Path) -> None:
    denoiser = load_denoiser(tiny_pipeline())
    transformer = denoiser.transformer
    with torch.no_grad():
        for parameter in transformer.parameters():
            # Some tensors are exact in float16 in any case: the file must not mix the two.
            exact = half or parameter.dim() == 1
            parameter.copy_(parameter.half() if exact else parameter)
    save_transformer(transformer, tmp_path / "labelled")
    save_pipeline(denoiser, tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "model/transformer/config.json").read_text())
    with safe_open(tmp_path / "model/transformer" / WEIGHTS, framework="pt") as stored:
        dtypes = {stored.get_tensor(key).dtype for key in stored.keys()}  # noqa: SIM118
    assert dtypes == {torch.float16 if half else torch.float32}
    loaded = DiTTransformer2DModel.from_pretrained(tmp_path / "model/transformer")
    assert getattr(loaded, "hf_quantizer", None) is None
    inputs = dit_inputs(transformer)
    expected = transformer(**inputs)[0]
    assert torch.equal(loaded(**inputs)[0], expected)
    ours = load_compressed(tmp_path / "model").transformer
    assert torch.equal(ours(**inputs)[0], expected)
    assert ours.transformer_blocks[0].norm1.emb is ours.transformer_blocks[1].norm1.emb


def test_shared_embedders_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    denoiser = load_denoiser(tiny_pipeline(num_layers=4))
    save_transformer(denoiser.transformer, tmp_path / "model")
    file = tmp_path / "model" / WEIGHTS
    with safe_open(file, framework="pt") as stored:
        embedders = {key.split(".")[1] for key in stored.keys() if ".norm1.emb." in key}  # noqa: SIM118
    assert embedders == {"0"}
    parameters = sum(p.numel() for p in denoiser.transformer.parameters())
    assert 4 * parameters < file.stat().st_size < 4 * parameters + 20_000
    for loaded in (load_compressed(tmp_path / "model").transformer, load_transformer(file.parent)):
        assert len({id(block.norm1.emb) for block in loaded.transformer_blocks}) == 1
        assert sum(p.numel() for p in loaded.parameters()) == parameters


def test_weights_that_came_in_half_precision_are_stored_so(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    for parameter in pipeline.transformer.parameters():
        parameter.copy_(parameter.half())
    save_pipeline(load_denoiser(pipeline), tmp_path / "half")
    save_pipeline(load_denoiser(tiny_pipeline()), tmp_path / "full")
    sizes = {name: (tmp_path / name / "transformer" / WEIGHTS).stat().st_size for name in ("half", "full")}
    assert sizes["half"] < 0.7 * sizes["full"]
    inputs = dit_inputs(pipeline.transformer)
    loaded = load_compressed(tmp_path / "half").transformer
    assert torch.equal(loaded(**inputs)[0], pipeline.transformer(**inputs)[0])


def test_a_loaded_one_can_be_saved_again_by_diffusers(compressed: Denoiser, tmp_path: Path) -> None:
    save_pipeline(compressed, tmp_path / "first")
    DiffusionPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / "transformer" / WEIGHTS).read_bytes() for name in ("first", "second"))
    assert first == second


def test_dequantize_gives_a_float_model_that_saves_as_one(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    model = DiTTransformer2DModel.from_pretrained(tmp_path / "model")
    weight = model.get_submodule("transformer_blocks.0.attn1.to_q").dequantize()
    model.dequantize()
    assert torch.equal(model.transformer_blocks[0].attn1.to_q.weight, weight)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert "quantization_config" not in json.loads(model.to_json_string())  # what diffusers would save
    save_transformer(model, tmp_path / "float")
    assert torch.equal(
        load_transformer(tmp_path / "float").transformer_blocks[0].attn1.to_q.weight.detach(), weight
    )


def test_damaged_configs_are_named(compressed: Denoiser, tmp_path: Path) -> None:
    save_transformer(compressed.transformer, tmp_path / "model")
    path = tmp_path / "model/config.json"
    good = json.loads(path.read_text())

    def refused(**changes: object) -> str:
        path.write_text(json.dumps(good | {"quantization_config": good["quantization_config"] | changes}))
        with pytest.raises(InputError) as caught:
            load_transformer(tmp_path / "model")
        return str(caught.value)

    layers = good["quantization_config"]["layers"]
    name = "transformer_blocks.0.attn1.to_q"
    assert "expected at most 3; update ditpress" in refused(schema=4)
    assert "nothing.here is not in DiTTransformer2DModel" in refused(
        layers=layers | {"nothing.here": layers[name]}
    )
    assert "to_q.scale: shape (16, 2) in the file, (16, 1)" in refused(
        layers=layers | {name: layers[name] | {"group_size": 16}}
    )
    assert "int3" in refused(layers=layers | {name: layers[name] | {"format": "int3"}})
    assert refused(layers=layers | {name: {"format": "int4"}})
    assert refused(layers={k: v for k, v in layers.items() if k != name})
    assert refused(shared=[["transformer_blocks.0.norm1.emb", "transformer_blocks.9.norm1.emb"]])


def test_quantizing_while_loading_is_refused(tmp_path: Path) -> None:
    from ditpress.load.quantization_config import DitpressConfig

    tiny_pipeline().transformer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="use a recipe"):
        DiTTransformer2DModel.from_pretrained(tmp_path, quantization_config=DitpressConfig())


def test_files_are_readable_by_others(compressed: Denoiser, tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save_pipeline(compressed, tmp_path / "model")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "model/transformer" / WEIGHTS).stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_folder(
    compressed: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save_pipeline(compressed, tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr(checkpoint_module, "_forget_paths", fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_pipeline(compressed, tmp_path / "model")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_in_the_way(compressed: Denoiser, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken is a file, expected a folder"):
        save_pipeline(compressed, tmp_path / "taken")
    with pytest.raises(InputError, match=r"cannot write below \(Not a directory\)"):
        save_pipeline(compressed, tmp_path / "taken" / "below")
    assert (tmp_path / "taken").read_text() == "mine"
