"""The command line: exit codes, one-line errors, JSON, and that nothing is touched by a dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from recipes.tiny_model import QUICK, save_model
from safetensors.torch import load_file, save_file

from ditpress.cli import main

PLUGIN = Path(__file__).resolve().parents[1] / "plugins" / "optimum-cli"
SETTINGS = [part for setting in QUICK for part in ("--set", setting)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def out(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "out"
    assert run("w8a8", str(model), "-o", str(path), "--quiet", *SETTINGS) == 0
    return path


def run(*arguments: str) -> int:
    """The exit code of ``ditpress ARGUMENTS``, in this process."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_help_lists_every_recipe_and_command_without_torch() -> None:
    code = (
        "import sys; from ditpress.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    for name in (
        "w4a8",
        "w8a8",
        "run",
        "recipes",
        "inspect",
        "validate",
        "check",
        "report",
        "bench",
        "sample",
    ):
        assert f"\n  {name} " in shown.stdout
    assert shown.stdout.rstrip().endswith("False")


def test_version_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("ditpress ")
    assert run("recipes", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"svdquant", "w4a8", "w8a8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w4a9"], 'no command "w4a9"; did you mean "w4a8"?'),
        (["w4a8", "zoo:mnist-dit"], "missing -o OUT"),
        (["w4a8", "-o", "x", "--sampels", "3"], "No such option"),
        (["w4a8", "-o", "x", "--set", "quantize.weights.gruop=64"], 'did you mean "group"?'),
        (["w4a8", "nowhere-at-all", "-o", "x"], "nowhere-at-all: not found; expected zoo:NAME"),
        (["run", "nowhere.yaml", "-o", "x"], "recipe nowhere.yaml: no such file"),
        (["w4a8", "-o", "x", "--data", "d.npz"], "recipe w4a8: has no stage that learns from data"),
        (["prune-depth", "-o", "x", "--data", "d.npz"], "d.npz: no such file"),
        (["bench", "nowhere"], "nowhere: no run folder of ditpress"),
        (["validate", "nowhere"], "nowhere: no run folder of ditpress"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_is_exit_code_3_with_its_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ditpress.compress.smooth.search_smoothing", broken)
    assert run("w8a8", str(model), "-o", str(tmp_path / "out"), *SETTINGS) == 3
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1] == "ditpress: stage 1/2 smooth failed: ZeroDivisionError: division by zero"


def test_dry_run_prints_the_estimate_and_touches_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert run("w4a8", str(model), "-o", str(target), "--dry-run", "--json", *SETTINGS) == 0
    guess = json.loads(capsys.readouterr().out)
    assert not target.exists()
    quantized = {row["role"]: row["format"] for row in guess["roles"] if row["format"] != "as it is"}
    # 64 inputs: one group of 64 is the channel
    assert quantized["qkv"].startswith("int4, channel, int8 inputs")
    assert quantized["modulation"] == "int4, channel"
    assert guess["compressed_bytes"] < guess["original_bytes"]
    assert run("w4a8", str(model), "--dry-run", *SETTINGS) == 0
    assert "effective bits" in capsys.readouterr().out


def test_the_estimated_size_is_the_size(model: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("w8a8", str(model), "--dry-run", "--json", *SETTINGS) == 0
    guess = json.loads(capsys.readouterr().out)
    size = json.loads((out / "report.json").read_text())["size"]
    assert guess["effective_bits"] == size["effective_bits"]
    assert (guess["original_bytes"], guess["compressed_bytes"]) == (
        size["original_bytes"],
        size["compressed_bytes"],
    )


def test_json_of_a_run_is_its_report(model: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("w8a8", str(model), "-o", str(out), "--json", *SETTINGS) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "report.json").read_text())


def test_inspect_sees_the_formats_of_a_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(out), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    formats = {row["role"]: row["format"] for row in found["linears"]}
    assert formats["mlp_in"] == "int8, channel, int8 inputs"
    assert formats["embedder"] == "float"
    assert run("inspect", str(out)) == 0
    assert "bits per parameter" in capsys.readouterr().out


def test_bench_exports_the_original_where_it_is_missing(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not list(out.glob("stages/*original-onnx*"))
    assert run("bench", str(out), "--threads", "1", "--json") == 0
    speed = json.loads(capsys.readouterr().out)
    assert speed["threads"] == 1
    assert speed["original_ms"] > 0
    assert speed["compressed_ms"] > 0


def test_sample_draws_a_grid(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "grid.png"
    assert run("sample", str(out), "-o", str(target), "--samples", "3", "--steps", "2", "--quiet") == 0
    with Image.open(target) as picture:
        assert picture.width == picture.height  # 3 images in 2 x 2
    assert run("sample", str(out), "-o", str(tmp_path / "grid.jpg"), "--samples", "1", "--steps", "1") == 2


def test_fresh_replaces_a_run_and_keeps_what_is_not_ours(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert run("w8a8", str(model), "-o", str(target), "--quiet", *SETTINGS) == 0
    (target / "notes.txt").write_text("mine")
    assert run("w8a8", str(model), "-o", str(target), "--quiet", *SETTINGS, "--seed", "5") == 2
    assert run("w8a8", str(model), "-o", str(target), "--quiet", *SETTINGS, "--seed", "5", "--fresh") == 0
    assert yaml.safe_load((target / "recipe.yaml").read_text())["seed"] == 5
    assert (target / "notes.txt").read_text() == "mine"


def test_a_folder_of_other_files_is_never_touched(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for flags in ([], ["--fresh"]):
        assert run("w8a8", str(model), "-o", str(tmp_path), *SETTINGS, *flags) == 2
        assert "holds files that are not of a ditpress run (thesis.txt)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_nan_weights_name_the_layer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = save_model(tmp_path / "broken")
    (file,) = (broken / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    tensors["transformer_blocks.1.ff.net.2.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    assert run("w8a8", str(broken), "-o", str(tmp_path / "out"), *SETTINGS) == 2
    assert "transformer_blocks.1.ff.net.2.weight holds NaN" in capsys.readouterr().err


def test_budgets_of_mixed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*flags: str) -> dict[str, float]:
        assert run("mixed", str(model), "--dry-run", "--json", *SETTINGS, *flags) == 0
        return json.loads(capsys.readouterr().out)

    assert 8.0 < planned("--bits", "9")["effective_bits"] <= 9.0
    assert 190_000 < planned("--budget", "200kB")["compressed_bytes"] <= 200_000
    for flags, said in (
        (("--bits", "9", "--budget", "200kB"), "--bits and --budget: give one of them"),
        (("--budget", "much"), "expected a size such as 0.3GB"),
        (("--bits", "0.5"), "less than the smallest"),
    ):
        assert run("mixed", str(model), "--dry-run", *SETTINGS, *flags) == 2
        assert said in capsys.readouterr().err
    assert run("w4a8", str(model), "--dry-run", "--bits", "9") == 2


def test_optimum_cli_forwards_to_us() -> None:
    code = "from optimum.commands.optimum_cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(PLUGIN)])}
    command = [sys.executable, "-P", "-c", code, "ditpress", "recipes", "--json"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert set(json.loads(shown.stdout)) >= {"svdquant", "w4a8", "w8a8"}
