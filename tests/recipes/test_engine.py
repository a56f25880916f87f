"""Whole runs: kill -9 anywhere, damage a checkpoint, and still the same bits."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from tiny_model import QUICK, hashes, kill_when, save_model

import ditpress
from ditpress.errors import InputError, StageError
from ditpress.recipes import steps
from ditpress.validate.report import load_report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    ditpress.compress(str(model), "w4a8", out=out, overrides=QUICK)
    return out


def test_a_run_leaves_what_the_design_says(undisturbed: Path, model: Path) -> None:
    report = load_report(undisturbed / "report.json")
    assert report.model == str(model)
    assert report.recipe == "w4a8"
    assert [stage.name for stage in report.stages][:2] == ["calibration", "original"]
    assert [s.name for s in report.stages][2:] == ["smooth", "quantize", "model", "onnx", "validation"]
    assert all(stage.peak_rss_bytes > 10_000_000 for stage in report.stages)
    assert report.fidelity.samples == 0
    assert report.fidelity.paired.psnr is None
    assert report.fidelity.paired.output_sqnr_db is not None
    assert report.fidelity.paired.output_sqnr_db > 10
    assert report.parity.onnx_vs_torch_max_abs is not None
    onnx = undisturbed / "onnx" / "transformer" / "model.onnx"
    assert report.size.onnx_bytes == sum(f.stat().st_size for f in onnx.parent.iterdir())
    assert report.size.compressed_bytes < report.size.original_bytes
    assert "<html" in (undisturbed / "report.html").read_text()
    assert not list(undisturbed.glob(".part-*"))


@pytest.mark.parametrize(
    "moment", ["stages/00-calibration-*", "stages/01-smooth-*", ".part-stages-02-*", ".part-onnx"]
)
def test_killed_and_run_again_gives_the_same_bits(
    moment: str, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kill_when(moment, "w4a8", model, out, QUICK)
    assert not (out / "report.json").exists()
    ditpress.compress(str(model), "w4a8", out=out, overrides=QUICK)
    assert hashes(out) == hashes(undisturbed)


def test_a_finished_run_is_not_done_again(
    model: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("was done again")

    for name in ("record", "apply_stage", "export", "save_model", "draw_original", "draw_compressed"):
        monkeypatch.setattr(steps, name, fail)
    before = hashes(undisturbed)
    result = ditpress.compress(str(model), "w4a8", out=undisturbed, overrides=QUICK)
    assert hashes(undisturbed) == before
    assert type(result.pipeline).__name__ == "PixelDiTPipeline"
    assert "<html" in result.report._repr_html_()
    assert result.report.recipe == "w4a8"


@pytest.mark.parametrize("damaged", ["stages/02-quantize-*/*.safetensors", "model/transformer/*.safetensors"])
def test_a_truncated_file_is_found_and_made_again(damaged: str, model: Path, undisturbed: Path) -> None:
    before = hashes(undisturbed)
    (path,) = undisturbed.glob(damaged)
    path.write_bytes(path.read_bytes()[:-100])
    ditpress.compress(str(model), "w4a8", out=undisturbed, overrides=QUICK)
    assert hashes(undisturbed) == before


def test_the_written_recipe_gives_the_same_bits(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    ditpress.compress(str(model), undisturbed / "recipe.yaml", out=tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(undisturbed)


def test_out_of_another_run_is_kept(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    before = hashes(undisturbed)
    with pytest.raises(InputError, match=r"holds a run of .* with recipe w4a8 .*--fresh to replace it"):
        ditpress.compress(str(model), "w8a8", out=undisturbed, overrides=QUICK)
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="holds a run of"):
        ditpress.compress(str(other), "w4a8", out=undisturbed, overrides=QUICK)
    assert hashes(undisturbed) == before


def test_a_full_disk_is_an_input_error_and_leaves_nothing_half_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(steps, "save_pipeline", full)
    with pytest.raises(InputError, match="the disk is full while writing model"):
        ditpress.compress(str(model), "w4a8", out=out, overrides=QUICK)
    assert not (out / "model").exists()
    assert not list(out.glob(".part-*"))
    assert list(out.glob("stages/02-quantize-*/manifest.json"))  # what is finished is kept


def test_an_unforeseen_error_names_the_stage(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ditpress.compress.quantize.stage.quantize_linear", broken)
    with pytest.raises(StageError, match="stage 2/2 quantize failed: ZeroDivisionError: division by zero"):
        ditpress.compress(str(model), "w4a8", out=tmp_path / "out", overrides=QUICK)


def test_a_group_that_does_not_fit_is_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="K = 64 is not divisible by the group 48"):
        ditpress.compress(str(model), "w4a8", out=out, overrides=[*QUICK, "quantize.weights.group=48"])
    assert not out.exists()


def test_a_skip_pattern_that_matches_nothing_names_the_closest(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r'"transformer_blocks\.0\.atn1\.to_q" matches no layer; closest: .*attn1\.to_q'
    ):
        ditpress.compress(
            str(model),
            "w4a8",
            out=tmp_path / "o",
            overrides=["quantize.skip=[transformer_blocks.0.atn1.to_q]"],
        )


def test_a_pipeline_object_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    from ditpress.load.denoiser import load_denoiser

    pipeline = load_denoiser(str(model)).pipeline
    transformer = pipeline.transformer
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    ditpress.compress(pipeline, "w8a8", out=tmp_path / "out", overrides=QUICK)
    assert pipeline.transformer is transformer
    after = transformer.state_dict()
    assert all((after[name] == tensor).all() for name, tensor in before.items())
    config = json.loads((tmp_path / "out" / "model" / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "ditpress"
