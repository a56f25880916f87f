"""What MODEL may be, and a one-line message for everything it may not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_dit import dit_inputs, tiny_dit, tiny_pipeline, tiny_sd3

from ditpress.errors import InputError
from ditpress.load import LatentDiTPipeline, PixelDiTPipeline, load_denoiser, resolve
from ditpress.load import source as source_module
from ditpress.load.random_dit import ARCHITECTURES, architecture, random_dit
from ditpress.load.weights import load_transformer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformer folder."""
    tiny_dit().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pipeline_folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def refused(model: Path | str) -> str:
    """The error for ``model``: one line that names it."""
    with pytest.raises(InputError) as caught:
        load_denoiser(str(model))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_kinds(folder: Path, pipeline_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").touch()
    pipeline_folder.rename(run / "model")
    found = {name: resolve(name) for name in (str(folder), str(run), "random:DiT-XL/2", "owner/name")}
    assert [source.kind for source in found.values()] == ["transformer", "run", "random", "hub"]
    assert found[str(folder)].path == folder
    assert found[str(run)].path == run / "model"
    assert all(source.spec == name for name, source in found.items())


def test_the_bundled_model_is_the_zoo_one() -> None:
    source = resolve("zoo:mnist-dit")
    assert source.kind == "zoo"
    denoiser = load_denoiser("zoo:mnist-dit")
    assert isinstance(denoiser.pipeline, PixelDiTPipeline)
    assert (denoiser.default_steps, denoiser.default_guidance) == (25, 1.5)
    assert denoiser.captions([7]) == ["a photo of the digit seven"]
    assert next(denoiser.transformer.parameters()).dtype == torch.float32
    assert denoiser.sample([0], steps=1).shape == (1, 1, 28, 28)


def test_a_transformer_alone_gets_the_linear_schedule(folder: Path) -> None:
    denoiser = load_denoiser(str(folder))
    assert isinstance(denoiser.pipeline, PixelDiTPipeline)
    config = denoiser.pipeline.scheduler.config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (1e-4, 0.02, "linear")
    assert (config.prediction_type, config.clip_sample) == ("epsilon", True)
    inputs = dit_inputs(denoiser.transformer)
    assert torch.equal(denoiser.transformer(**inputs)[0], tiny_dit()(**inputs)[0])


def test_four_channels_are_latents(tmp_path: Path) -> None:
    tiny_dit(channels=4).save_pretrained(tmp_path)
    pipeline = load_denoiser(str(tmp_path)).pipeline
    assert isinstance(pipeline, LatentDiTPipeline)
    assert not pipeline.scheduler.config.clip_sample


def test_a_checkpoint_in_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    model = tiny_dit()
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    copy.deepcopy(model).half().save_pretrained(tmp_path)
    loaded = load_denoiser(str(tmp_path)).transformer
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    inputs = dit_inputs(loaded)
    assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])


def test_the_scheduler_can_be_replaced(pipeline_folder: Path, tmp_path: Path) -> None:
    EulerDiscreteScheduler().save_pretrained(tmp_path / "euler")
    denoiser = load_denoiser(str(pipeline_folder), scheduler=tmp_path / "euler")
    assert isinstance(denoiser.pipeline.scheduler, EulerDiscreteScheduler)
    assert denoiser.sample([0], steps=2).isfinite().all()
    again = load_denoiser(str(pipeline_folder), scheduler=pipeline_folder)
    assert isinstance(again.pipeline.scheduler, DDIMScheduler)
    with pytest.raises(InputError, match=r"scheduler_config\.json: cannot be read"):
        load_denoiser(str(pipeline_folder), scheduler=tmp_path / "nowhere")


def test_fingerprint_knows_weights_config_and_scheduler(
    folder: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    first = load_denoiser(str(pipeline_folder)).fingerprint
    moved = pipeline_folder.rename(tmp_path / "elsewhere")
    assert load_denoiser(str(moved)).fingerprint == first
    assert load_denoiser(str(folder)).fingerprint != first  # the same weights under another scheduler
    state = load_file(moved / "transformer" / WEIGHTS)
    state["proj_out_2.bias"][0] += 2**-10
    save_file(state, moved / "transformer" / WEIGHTS, metadata={"format": "pt"})
    assert load_denoiser(str(moved)).fingerprint != first


def test_random_models_have_the_published_sizes() -> None:
    # Peebles & Xie 2023, table 4: parameters in millions, one embedder for all blocks.
    published = {"DiT-S/2": 33, "DiT-B/4": 130, "DiT-L/2": 458, "DiT-XL/2": 675}
    with torch.device("meta"):
        for name, millions in published.items():
            config = ARCHITECTURES[name]
            hidden = config["num_attention_heads"] * config["attention_head_dim"]
            block = tiny_dit.__globals__["DiTTransformer2DModel"](**config | {"num_layers": 1})
            count = sum(p.numel() for p in block.parameters())
            per_block = 18 * hidden**2 + 15 * hidden  # attention 4, MLP 8, modulation 6; their biases
            total = count + (config["num_layers"] - 1) * per_block
            assert total / 1e6 == pytest.approx(millions, rel=0.01), name


def test_random_model_is_shared_seeded_and_alive() -> None:
    config = architecture("DiT-S/8") | {"num_layers": 2, "num_embeds_ada_norm": 10}
    model, same, other = (random_dit(config, seed) for seed in (1, 1, 2))
    assert model.transformer_blocks[0].norm1.emb is model.transformer_blocks[1].norm1.emb
    assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))
    inputs = dit_inputs(model)
    out = model(**inputs)[0]
    assert out.shape == (3, 8, 32, 32)
    assert torch.equal(out, same(**inputs)[0])
    assert not torch.equal(out, other(**inputs)[0])
    assert 0.05 < out.std() < 20
    for block in model.transformer_blocks:  # every layer matters
        weight = block.ff.net[2].weight
        kept = weight.clone()
        weight.zero_()
        assert (model(**inputs)[0] - out).abs().max() > 1e-3
        weight.copy_(kept)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("", "MODEL is empty"),
        ("zoo:mnist", "zoo:mnist: no such bundled model, expected one of mnist-clip, mnist-dit"),
        ("random:DiT-XXL/2", "unknown architecture, expected one of DiT-S/2"),
        ("no such thing", "not found; expected zoo:NAME"),
        ("./missing/folder/deep", "not found"),
        ("DiT-XL-2-256x256.pt", "only safetensors is read"),
    ],
)
def test_names_that_mean_nothing(model: str, text: str) -> None:
    assert text in refused(model)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "pkl"])
def test_pickles_are_refused_with_the_way_out(folder: Path, suffix: str) -> None:
    text = refused(folder / f"model.{suffix}")
    assert "only safetensors is read" in text
    assert "safe_serialization=True" in text
    (folder / WEIGHTS).rename(folder / f"diffusion_pytorch_model.{suffix}")
    text = refused(folder)
    assert f"found diffusion_pytorch_model.{suffix}" in text
    assert "safe_serialization=True" in text


def test_a_safetensors_file_alone(folder: Path) -> None:
    assert "expected a folder" in refused(folder / WEIGHTS)


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert f"expected {WEIGHTS} beside config.json" in refused(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    assert f"{WEIGHTS}: truncated or not a safetensors file" in refused(folder)


def test_a_missing_shard(tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    load_denoiser(str(tmp_path))
    shards[-1].unlink()
    assert f"the weight file {shards[-1].name} is missing" in refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    state = load_file(folder / WEIGHTS)
    state["transformer_blocks.1.attn1.to_k.weight"][3, 2] = value
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    assert "transformer_blocks.1.attn1.to_k.weight holds NaN or infinite values" in refused(folder)


def test_large_weights_are_not_taken_for_infinite(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["proj_out_2.weight"].fill_(3e38)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    assert torch.equal(load_transformer(folder).proj_out_2.weight, state["proj_out_2.weight"])


def test_weights_of_another_model(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = load_file(folder / WEIGHTS)
    tensor = state.pop("proj_out_2.bias")
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    assert "1 missing keys such as proj_out_2.bias" in refused(folder)
    assert capfd.readouterr() == ("", "")  # the one line is all
    save_file(
        state | {"proj_out_2.bias": tensor, "extra": tensor.clone()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    assert "1 unexpected keys such as extra" in refused(folder)
    save_file(state | {"proj_out_2.bias": tensor[:-1].clone()}, folder / WEIGHTS, metadata={"format": "pt"})
    assert "cannot be loaded as DiTTransformer2DModel" in refused(folder)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_config_of_an_unknown_class(folder: Path) -> None:
    edit(folder / "config.json", _class_name="UNet2DConditionModel")
    assert "class 'UNet2DConditionModel' is no DiT we know, expected DiTTransformer2DModel" in refused(folder)


def test_the_old_name_of_dit(folder: Path) -> None:
    edit(folder / "config.json", _class_name="Transformer2DModel")
    assert type(load_denoiser(str(folder)).transformer).__name__ == "DiTTransformer2DModel"


def test_a_model_quantized_by_someone_else(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "is already quantized with bitsandbytes; give the original model" in refused(folder)


def test_broken_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json: not valid JSON" in refused(folder)
    (folder / "config.json").write_text("[]")
    assert "expected a JSON object, found list" in refused(folder)


def test_folders_without_a_model(tmp_path: Path, pipeline_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "expected model_index.json (a pipeline) or config.json" in refused(tmp_path / "empty")
    edit(pipeline_folder / "model_index.json", _class_name="NoSuchPipeline")
    assert "'NoSuchPipeline' is no pipeline of diffusers" in refused(pipeline_folder)
    index = json.loads((pipeline_folder / "model_index.json").read_text())
    del index["transformer"]
    (pipeline_folder / "model_index.json").write_text(json.dumps(index))
    assert "has no transformer" in refused(pipeline_folder)
    (pipeline_folder / "model_index.json").unlink()
    assert "transformer to load it alone" in refused(pipeline_folder)


def test_an_unfinished_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    assert "a run without a finished model/" in refused(tmp_path)


def test_a_text_model_needs_its_pipeline(tmp_path: Path) -> None:
    tiny_sd3()[0].save_pretrained(tmp_path)
    assert "needs its text encoders" in refused(tmp_path)


def test_a_pipeline_object_without_a_transformer() -> None:
    pipeline = tiny_pipeline()
    pipeline.transformer = None
    with pytest.raises(InputError, match="PixelDiTPipeline: has no transformer"):
        load_denoiser(pipeline)


def hub_says(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(source_module, "snapshot_download", fail)


def test_no_network_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, LocalEntryNotFoundError("Cannot find the files\nPlease check your connection"))
    assert "owner/model: no such folder, and the hub cannot be reached" in refused("owner/model")
    hub_says(monkeypatch, OSError("Connection reset\nby peer"))
    assert "the download failed (Connection reset by peer)" in refused("owner/model")


def test_a_name_the_hub_refuses() -> None:
    assert "nor a valid hub id" in refused("owner/bad--name")


def test_a_hub_model_is_fetched_without_pickles(
    monkeypatch: pytest.MonkeyPatch, pipeline_folder: Path
) -> None:
    asked: list[list[str]] = []

    def download(repo: str, allow_patterns: list[str]) -> str:
        assert repo == "owner/model"
        asked.append(allow_patterns)
        return str(pipeline_folder)

    monkeypatch.setattr(source_module, "snapshot_download", download)
    denoiser = load_denoiser("owner/model")
    assert denoiser.source.kind == "hub"
    assert torch.equal(
        denoiser.sample([3], steps=1), load_denoiser(str(pipeline_folder)).sample([3], steps=1)
    )
    assert asked == [["*.safetensors", "*.json", "*.txt", "*.model"]]


def test_random_weights_have_full_rank_and_the_right_spread() -> None:
    model = random_dit(architecture("DiT-B/8") | {"num_layers": 1, "num_embeds_ada_norm": 10})
    block = model.transformer_blocks[0]
    modulation = block.norm1.linear.weight  # 4608 x 768: reads the pool almost once
    assert modulation.std().item() == pytest.approx(0.02, rel=0.01)
    assert block.attn1.to_q.weight.std().item() == pytest.approx((2 / (768 + 768)) ** 0.5, rel=0.01)
    for weight in (modulation, block.ff.net[0].proj.weight, block.ff.net[2].weight):
        rows = torch.nn.functional.normalize(weight, dim=1)
        rows = rows[:: max(1, len(rows) // 512)]
        cosine = rows @ rows.T - torch.eye(len(rows))
        assert cosine.abs().max() < 0.3  # random rows: about 5 / sqrt(768)
