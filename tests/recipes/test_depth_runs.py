"""Whole runs of the recipes that leave out blocks: float and quantized, killed in the middle of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from tiny_dit import dit_inputs, tiny_pipeline
from tiny_model import QUICK, hashes, kill_when

import ditpress
from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.widths import cut_sizes
from ditpress.validate.report import load_report

SETTINGS = [
    *QUICK,
    "prune-depth.learned.rank=2",
    "prune-depth.learned.save_every=5",
    "prune-depth.learned.training.steps=40",
    "distill.samples=4",
    "distill.sampling_steps=3",
    "distill.batch=2",
    "distill.save_every=5",
    "distill.training.steps=40",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(num_attention_heads=4, attention_head_dim=16, num_layers=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    ditpress.compress(str(model), "prune-depth", out=out, overrides=SETTINGS)
    return out


def test_a_float_run_ends_in_half_the_model(undisturbed: Path) -> None:
    report = load_report(undisturbed / "report.json")
    assert [stage.name for stage in report.stages][2:4] == ["prune-depth", "distill"]
    assert 0.45 < report.size.compressed_bytes / report.size.original_bytes < 0.65
    assert report.size.effective_bits == 32
    assert report.parity.onnx_vs_torch_relative is not None
    assert report.parity.onnx_vs_torch_relative < 1e-4
    config = json.loads((undisturbed / "model" / "transformer" / "config.json").read_text())
    assert config["num_layers"] == 2
    assert "quantization_config" not in config
    plain = DiTTransformer2DModel.from_pretrained(undisturbed / "model" / "transformer")
    inputs = dit_inputs(plain)
    assert torch.equal(plain(**inputs)[0], ditpress.load(undisturbed).transformer(**inputs)[0])
    (manifest,) = undisturbed.glob("stages/01-prune-depth-*/manifest.json")
    facts = json.loads(manifest.read_text())["facts"]
    assert len(facts["kept_blocks"]["transformer_blocks"]) == 2
    assert len(facts["block_scores"]) == 4
    assert not list(undisturbed.glob("stages/.work-*"))


@pytest.mark.parametrize("stage", ["01-prune-depth", "02-distill"])
def test_killed_while_it_trains_and_run_again_gives_the_same_bits(
    stage: str, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    saved = f"stages/.work-{stage}-*/training.safetensors"
    kill_when(saved, "prune-depth", model, out, SETTINGS)
    assert list(out.glob(saved))
    assert not list(out.glob(f"stages/{stage}-*"))
    ditpress.compress(str(model), "prune-depth", out=out, overrides=SETTINGS)
    assert hashes(out) == hashes(undisturbed)
    assert not list(out.glob("stages/.work-*"))


def test_the_chain_ends_in_a_quantized_small_model(model: Path, tmp_path: Path) -> None:
    ditpress.compress(str(model), "tiny", out=tmp_path / "out", overrides=SETTINGS)
    report = load_report(tmp_path / "out" / "report.json")
    names = [stage.name for stage in report.stages]
    assert names[2:6] == ["prune-depth", "distill", "smooth", "quantize"]
    assert report.size.compressed_bytes < 0.3 * report.size.original_bytes
    transformer = ditpress.load(tmp_path / "out").transformer
    assert len(transformer.transformer_blocks) == 2
    assert any(isinstance(module, QuantizedLinear) for module in transformer.modules())


def test_the_chain_ends_in_a_ternary_small_model(model: Path, tmp_path: Path) -> None:
    settings = [
        *SETTINGS,
        "ternary.samples=2",
        "ternary.sampling_steps=3",
        "ternary.batch=2",
        "ternary.training.steps=4",
    ]
    ditpress.compress(str(model), "tiny-ternary", out=tmp_path / "out", overrides=settings)
    report = load_report(tmp_path / "out" / "report.json")
    assert [stage.name for stage in report.stages][2:5] == ["prune-depth", "distill", "ternary"]
    assert report.size.compressed_bytes < 0.3 * report.size.original_bytes
    transformer = ditpress.load(tmp_path / "out").transformer
    assert len(transformer.transformer_blocks) == 2
    formats = {m.format for m in transformer.modules() if isinstance(m, QuantizedLinear)}
    assert formats == {"ternary"}


def test_the_chain_ends_in_a_quantized_narrow_model(model: Path, tmp_path: Path) -> None:
    settings = [setting for setting in SETTINGS if not setting.startswith("prune-depth")]
    groups = ["quantize.weights.group=32"]  # two heads of 16 channels are what is left
    ditpress.compress(str(model), "small", out=tmp_path / "out", overrides=[*settings, *groups])
    report = load_report(tmp_path / "out" / "report.json")
    names = [stage.name for stage in report.stages]
    assert names[2:6] == ["prune-width", "distill", "smooth", "quantize"]
    transformer = ditpress.load(tmp_path / "out").transformer
    assert len(transformer.transformer_blocks) == 4
    assert {sizes.get("heads", 2) for sizes in cut_sizes(transformer).values()} == {2}
    assert any(isinstance(module, QuantizedLinear) for module in transformer.modules())


def test_a_pipeline_object_is_its_own_original(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    pipeline = ditpress.load(model)
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    ditpress.compress(pipeline, "prune-depth", out=tmp_path / "out", overrides=SETTINGS)
    first, second = (ditpress.load(out).transformer for out in (undisturbed, tmp_path / "out"))
    inputs = dit_inputs(first)
    assert torch.equal(first(**inputs)[0], second(**inputs)[0])
    after = pipeline.transformer.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_that_changes_under_the_run_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ditpress.recipes import loading

    load, times = loading.load_denoiser, 0

    def changing(*args: object, **kwargs: object) -> object:
        nonlocal times
        times += 1
        loaded = load(*args, **kwargs)  # type: ignore[arg-type]
        if times == 2:
            loaded.fingerprint = "another"
        return loaded

    monkeypatch.setattr(loading, "load_denoiser", changing)
    with pytest.raises(InputError, match="was changed while the run was under way; run again with --fresh"):
        ditpress.compress(str(model), "prune-depth", out=tmp_path / "out", overrides=SETTINGS)
