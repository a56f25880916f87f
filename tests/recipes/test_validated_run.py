"""A run with images: samples of both models, all figures, speed, and measuring it again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import save_model
from validate.conftest import save_clip

import ditpress
from ditpress.errors import InputError
from ditpress.export.session import OnnxTransformer
from ditpress.load.denoiser import load_denoiser
from ditpress.recipes import steps
from ditpress.recipes.bench import bench_run
from ditpress.recipes.revalidate import revalidate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    settings = ["calibration.samples=1", "calibration.steps=8", "validation.samples=4", "validation.steps=2"]
    settings.append(f"validation.extractor={save_clip(folder / 'clip')}")
    ditpress.compress(str(save_model(folder / "model")), "w8a8", out=folder / "out", overrides=settings)
    return folder


def test_every_figure_is_there(run: Path) -> None:
    result = ditpress.recipes.result.Result(run / "out")
    report = result.report.data
    assert (report.fidelity.samples, report.fidelity.steps) == (4, 2)
    assert report.fidelity.extractor is not None
    assert report.fidelity.original.clip is not None
    assert report.fidelity.compressed.fid_to_original is not None
    assert report.fidelity.reference is None
    assert report.speed.speedup is not None
    names = [stage.name for stage in report.stages]
    assert names[:3] == ["calibration", "original", "original-onnx"]
    assert names[-2:] == ["validation", "speed"]
    assert (run / "out" / "samples.png").stat().st_size > 1000
    assert result._repr_html_().count("data:image/png") == 12  # original, compressed and difference of four


def test_the_images_are_those_of_the_original_and_of_the_onnx_file(run: Path) -> None:
    (original,) = (run / "out").glob("stages/00-original-*/samples.safetensors")
    images = load_file(original)["images"]
    denoiser = load_denoiser(str(run / "model"))
    first = ditpress.recipes.result.Result(run / "out").report.data.fidelity.first_seed
    assert first is not None
    seeds = range(first, first + 4)
    torch.testing.assert_close(images, denoiser.sample(seeds, steps=2), rtol=0, atol=1e-6)
    (compressed,) = (run / "out").glob("stages/*-validation-*/samples.safetensors")
    shipped = denoiser.with_transformer(OnnxTransformer(run / "out" / "onnx" / "transformer"))
    torch.testing.assert_close(
        load_file(compressed)["images"], shipped.sample(seeds, steps=2), rtol=0, atol=1e-6
    )
    assert float((load_file(compressed)["images"] - images).abs().max()) > 1e-3


def test_measuring_again_keeps_the_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("was done again")

    for name in ("record", "apply_stage", "export", "save_model"):
        monkeypatch.setattr(steps, name, fail)
    report = revalidate(run / "out", {"samples": 6}).report.data
    assert report.fidelity.samples == 6
    with pytest.raises(InputError, match=r'validation has no field "sampels"; did you mean "samples"\?'):
        revalidate(run / "out", {"sampels": 6})


def test_bench_uses_the_original_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("was exported again")

    monkeypatch.setattr("ditpress.recipes.bench.export_original", fail)
    assert bench_run(run / "out").threads == torch.get_num_threads()
