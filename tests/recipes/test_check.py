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
from recipes.tiny_model import save_model
from validate.conftest import save_clip

import ditpress
from ditpress.cli import main
from ditpress.errors import GateError, InputError
from ditpress.recipes.check import Check, check
from ditpress.recipes.judge import Judge, Judged
from ditpress.validate.reference import MNIST_TEST
from ditpress.validate.report import Speed
from gate.plants import (
    Damage,
    fewer_steps,
    other_scheduler,
    scales_off,
    shipped,
    stale_onnx,
    swapped_channels,
    two_bits,
)

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
def test_a_damaged_layer_is_caught_and_named(home: Path, out: Path, change: Damage) -> None:
    shipped(LAYER, change)(out)
    found = failed(gate(out, home))
    assert found["layer_sqnr_db"] == LAYER
    assert "parity_margin_db" not in found  # the file does what the model does, both are wrong


def test_a_stale_onnx_file_beside_a_newer_checkpoint_is_caught(home: Path, out: Path) -> None:
    stale_onnx(out)
    found = failed(gate(out, home))
    assert "parity_margin_db" in found
    assert "psnr" not in found  # the images still come from the old file


def test_another_scheduler_is_refused(home: Path, out: Path) -> None:
    other_scheduler(out)
    with pytest.raises(InputError, match="scheduler_sha256"):
        gate(out, home)


def test_fewer_steps_are_refused(home: Path, out: Path) -> None:
    fewer_steps(out)
    with pytest.raises(InputError, match=r"steps 3 there, 1 here; .*--steps"):
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


TIMED = {"onnx_ms": {"max_ratio": 1.1}, "speedup": {"max_drop": "10%"}}


@pytest.fixture(scope="module")
def judged(home: Path) -> Judged | None:
    """All figures of the run but its times."""
    return Judge(home / "out").measure()


@pytest.fixture
def timed(
    home: Path, judged: Judged | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """``timed(ms, speedup, ...)``: a check with these times against a baseline of 10 ms and 2.0."""
    monkeypatch.setattr(Judge, "measure", lambda self: judged)
    path = tmp_path / "timed.json"

    def run(ms: float, speedup: float, cpu: str = "a processor", threads: int = 2, **options: Any) -> Any:
        speed = Speed(
            hardware=cpu, threads=threads, original_ms=ms * speedup, compressed_ms=ms, speedup=speedup
        )
        monkeypatch.setattr("ditpress.recipes.check.bench_run", lambda out: speed)
        monkeypatch.setattr("ditpress.recipes.check.hardware", lambda: cpu)
        monkeypatch.setattr("torch.get_num_threads", lambda: threads)
        return check(home / "out", path, **options)

    assert run(10.0, 2.0, update=True, rules=TIMED).updated
    return run


@pytest.mark.parametrize(
    ("ms", "speedup", "broken"),
    [
        (10.0, 2.0, set()),
        (10.9, 1.85, set()),
        (5.0, 4.0, set()),  # faster is never a failure
        (11.1, 1.9, {"onnx_ms"}),
        (9.0, 1.75, {"speedup"}),  # the original got faster, we did not
        (20.0, 1.0, {"onnx_ms", "speedup"}),
    ],
)
def test_slower_steps_trip_the_timed_rules(
    timed: Callable[..., Any], ms: float, speedup: float, broken: set[str]
) -> None:
    outcome = timed(ms, speedup)
    assert set(failed(outcome)) == broken
    assert {verdict.metric: verdict.value for verdict in outcome.verdicts} == {
        "onnx_ms": ms,
        "speedup": speedup,
    }
    if broken:
        with pytest.raises(GateError, match=f"{len(broken)} of 2 rules failed"):
            outcome.require()


@pytest.mark.parametrize("machine", [("another processor", 2), ("a processor", 1)])
def test_times_of_another_machine_are_refused_before_anything_is_drawn(
    timed: Callable[..., Any], machine: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "measure", None)
    cpu, threads = machine
    with pytest.raises(InputError) as caught:
        timed(10.0, 2.0, cpu=cpu, threads=threads)
    message = str(caught.value)
    assert "timed on a processor, 2 threads there" in message
    assert f"on {cpu}, {threads} threads here" in message


def test_a_timed_rule_needs_a_timed_baseline(home: Path) -> None:
    with pytest.raises(InputError, match="timed on None there"):
        gate(home / "out", home, rules={"onnx_ms": {"max_ratio": 1.1}})


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
