"""The gate on a whole run: planted regressions are caught, other seeds pass, bad input is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from recipes.tiny_model import save_model
from validate.conftest import save_clip

import ditpress
from ditpress.calibrate.calls import load_calls
from ditpress.cli import main
from ditpress.errors import InputError
from ditpress.export.onnx import export_transformer
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import main_linear
from ditpress.load.checkpoint import save_transformer
from ditpress.load.weights import load_transformer
from ditpress.recipes.check import Check, check
from ditpress.validate.reference import MNIST_TEST

SETTINGS = [
    *("smooth.alpha=0.5", "quantize.weights.rounding=nearest", "quantize.modulation.rounding=nearest"),
    *("calibration.samples=2", "calibration.steps=6"),
    *("validation.samples=40", "validation.steps=3", "validation.speed=false"),
]
LAYER = "transformer_blocks.1.ff.net.2"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run ``out`` and its baseline ``gate.json``."""
    folder = tmp_path_factory.mktemp("gate")
    with np.load(MNIST_TEST) as arrays:
        np.savez(folder / "digits.npz", images=arrays["images"][:60])
    settings = [*SETTINGS, f"validation.extractor={save_clip(folder / 'clip')}"]
    settings.append(f"validation.reference={folder / 'digits.npz'}")
    ditpress.compress(str(save_model(folder / "model")), "w8a8", out=folder / "out", overrides=settings)
    outcome = check(folder / "out", folder / "gate.json", update=True)
    assert outcome is not None
    assert outcome.updated
    return folder


def gate(out: Path, home: Path, **options: Any) -> Check:
    outcome = check(out, home / "gate.json", **options)
    assert outcome is not None
    return outcome


def failed(outcome: Check) -> dict[str, str | None]:
    return {verdict.metric: verdict.entry for verdict in outcome.verdicts if not verdict.passed}


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.fixture
def out(home: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(home / "out", tmp_path / "out"))


def ship(out: Path, change: Callable[[QuantizedLinear], None]) -> None:
    """Change one layer of the model in ``out`` and export it, as a faulty compression would have."""
    transformer = load_transformer(out / "model" / "transformer")
    change(main_linear(transformer.get_submodule(LAYER)))
    save_transformer(transformer, out / "model" / "transformer")
    (calls,) = out.glob("stages/00-calibration-*")
    kwargs = [call.kwargs for call in load_calls(calls)]
    export_transformer(transformer, out / "onnx" / "transformer", kwargs)


def scales_off(layer: QuantizedLinear) -> None:
    layer.scale.mul_(1.05)


def two_bits(layer: QuantizedLinear) -> None:
    """The four values ±1/3 and ±1 of the largest, instead of 255."""
    values = layer.codebook.flatten().double()
    levels = torch.tensor([-127.0, -42.0, 42.0, 127.0], dtype=torch.float64)
    index = torch.stack([(values == level).nonzero()[0, 0] for level in levels])
    drawn = values[layer.codes.long()]
    layer.codes.copy_(index[(drawn[..., None] - levels).abs().argmin(-1)].to(torch.uint8))


def swapped_channels(layer: QuantizedLinear) -> None:
    for buffer in (layer.codes, layer.scale):
        buffer[[0, 1]] = buffer[[1, 0]]


def test_the_same_run_passes_and_the_baseline_stays(home: Path) -> None:
    before = (home / "gate.json").read_bytes()
    outcome = gate(home / "out", home)
    outcome.require()
    for verdict in outcome.verdicts:
        assert verdict.value == pytest.approx(verdict.baseline, rel=1e-4, abs=1e-5), verdict
    assert (home / "gate.json").read_bytes() == before
    assert {verdict.metric for verdict in outcome.verdicts} >= {
        "fid",
        "clip",
        "psnr",
        "layer_sqnr_db",
        "bytes",
    }
    assert not list((home / "out" / "stages").glob(".work-*"))


@pytest.mark.parametrize("seed", range(1, 11))
def test_other_seeds_pass(home: Path, seed: int) -> None:
    outcome = gate(home / "out", home, seed=seed)
    assert failed(outcome) == {}
    psnr = next(verdict for verdict in outcome.verdicts if verdict.metric == "psnr")
    assert psnr.value != pytest.approx(psnr.baseline, rel=1e-6)  # they are other images
    assert outcome.notes == [f"seed {seed}, the baseline's is 0"]


@pytest.mark.parametrize("change", [scales_off, two_bits, swapped_channels])
def test_a_damaged_layer_is_caught_and_named(
    home: Path, out: Path, change: Callable[[QuantizedLinear], None]
) -> None:
    ship(out, change)
    found = failed(gate(out, home))
    assert found["layer_sqnr_db"] == LAYER
    assert "parity_margin_db" not in found  # the file does what the model does, both are wrong


def test_a_stale_onnx_file_beside_a_newer_checkpoint_is_caught(home: Path, out: Path) -> None:
    transformer = load_transformer(out / "model" / "transformer")
    for module in transformer.modules():  # what a second round of training would leave
        if isinstance(module, QuantizedLinear):
            noise = torch.randn(module.scale.shape, generator=torch.Generator().manual_seed(1))
            module.scale.mul_(1 + 0.05 * noise)
    save_transformer(transformer, out / "model" / "transformer")
    found = failed(gate(out, home))
    assert "parity_margin_db" in found
    assert "psnr" not in found  # the images still come from the old file


def test_another_scheduler_is_refused(home: Path, out: Path) -> None:
    path = out / "model" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(InputError, match="scheduler_sha256"):
        gate(out, home)


def test_fewer_steps_are_refused(home: Path, out: Path) -> None:
    recipe = out / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 3\n", "steps: 2\n"))
    with pytest.raises(InputError, match=r"steps 3 there, 2 here; .*--steps"):
        gate(out, home)
    assert code_of("check", str(out), "--baseline", str(home / "gate.json"), "--quiet") == 2


def test_more_bytes_are_caught(home: Path, out: Path) -> None:
    (out / "model" / "transformer" / "optimizer.bin").write_bytes(bytes(100_000))
    assert set(failed(gate(out, home))) == {"bytes"}


def test_another_model_and_another_extractor_are_refused(home: Path, out: Path, tmp_path: Path) -> None:
    data = json.loads((home / "gate.json").read_text())
    data["settings"]["fingerprint"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="fingerprint 000000000000 there"):
        check(out, tmp_path / "other.json")
    with pytest.raises(InputError, match="extractor_sha256"):
        gate(out, home, settings={"extractor": None})


def test_bad_input_is_refused_before_anything_is_drawn(
    home: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditpress.recipes.judge.draw_table", None)
    with pytest.raises(
        InputError, match=r"8 samples give a singular covariance of 8 features; .* at least 9"
    ):
        gate(out, home, settings={"samples": 8}, update=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in it"):
        gate(out, home, settings={"reference": str(tmp_path / "empty")})
    with pytest.raises(InputError, match="no such file; write it with --update"):
        check(out, tmp_path / "none.json")
    with pytest.raises(InputError, match="there is nothing to measure"):
        gate(out, home, settings={"samples": 0})
    (tmp_path / "rules.yaml").write_text("fid: [1")
    with pytest.raises(InputError, match="not readable as YAML"):
        gate(out, home, rules=tmp_path / "rules.yaml")
    shutil.rmtree(out / "onnx")
    with pytest.raises(InputError, match="no onnx/ yet"):
        gate(out, home)
    with pytest.raises(InputError, match="no run folder"):
        gate(tmp_path / "empty", home)


def test_a_changed_original_is_refused(home: Path, out: Path) -> None:
    marker = out / ".ditpress.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"fingerprint": "1" * 64}))
    with pytest.raises(InputError, match="is not the model of this run any more"):
        gate(out, home)


def test_images_of_another_size_are_refused(home: Path, tmp_path: Path) -> None:
    larger = save_model(tmp_path / "larger")
    from tiny_dit import tiny_pipeline

    tiny_pipeline(num_attention_heads=4, attention_head_dim=16, sample_size=12).save_pretrained(larger)
    arguments = ["validate", str(home / "out"), "--against", str(larger), "--samples", "4", "--quiet"]
    assert code_of(*arguments) == 2


def test_the_command_line(home: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = tmp_path / "gate.json"
    rules = tmp_path / "rules.yaml"
    rules.write_text("psnr: {max_drop: 0.5, noise: 0}\nclip: {min: 99}\nbytes: {max: 300MB}\n")
    command = ["check", str(out), "--baseline", str(baseline)]
    assert code_of(*command, "--update", "--rules", str(rules)) == 0
    assert "written; review and commit it" in capsys.readouterr().out
    written = json.loads(baseline.read_text())
    assert written["rules"]["psnr"] == {"max_drop": "0.5", "noise": 0.0}
    summary = tmp_path / "summary.md"
    summary.write_text("# Job\n")
    files = ["--junit", str(tmp_path / "gate.xml"), "--markdown", str(summary)]
    assert code_of(*command, *files) == 1
    shown = capsys.readouterr()
    assert "FAILED" in shown.out
    assert "1 of 3 rules failed: clip" in shown.err
    assert shown.err.count("\n") == 1
    suites = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert (suites.get("tests"), suites.get("failures")) == ("3", "1")
    assert summary.read_text().startswith("# Job\n### ditpress check")
    assert code_of(*command, "--json") == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    baseline.write_text(baseline.read_text()[:200])
    assert code_of(*command) == 2
    assert "not readable as JSON" in capsys.readouterr().err
