"""The pruning benchmark: rows as data, rows of a tiny model made here, and the baseline of fine-tuning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_dit import tiny_pipeline

from comparison.judge import make_by_recipe
from comparison.original import Conditions, Original
from comparison.results import sqnr
from ditpress.compress.distill.stage import Distill
from ditpress.errors import InputError
from ditpress.load.denoiser import load_denoiser
from pruning import cli, worker
from pruning.finetune import FineTune, noised_calls, target
from pruning.recipes import recipe_of
from pruning.results import Results
from pruning.rows import BEST_DEPTH, BUDGET, FINE_TUNED, LONG, ORIGINAL, ROWS, Row, select
from pruning.share import take_over

SAMPLES, STEPS = 4, 2
QUICK = (
    "calibration.samples=2",
    "calibration.steps=2",
    "distill.samples=4",
    "distill.sampling_steps=2",
    "distill.batch=2",
    "distill.training.steps=3",
    "prune-depth.criterion=output",
)


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(num_layers=4).save_pretrained(folder)
    return Conditions(str(folder), SAMPLES, STEPS, 1)


@pytest.fixture(scope="module")
def original(conditions: Conditions, tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def of_original(conditions: Conditions, original: Original):
    return worker.run(ORIGINAL, conditions, original.folder, original)


def test_rows_are_data_and_recipes():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert Row.from_data(json.loads(json.dumps(row.to_data()))) == row
    compressions = [recipe_of(row).compression() for row in ROWS if row is not ORIGINAL]
    assert all(one not in compressions[:index] for index, one in enumerate(compressions))
    assert [row.name for row in select(["depth-output-*"])][:3] == [
        "original",
        "depth-output-0",
        "depth-output-1",
    ]
    with pytest.raises(ValueError, match="depht: no such row; known: original, prune-depth"):
        select(["depht"])


def test_compared_rows_have_the_same_budget():
    """Else the table compares budgets."""
    for row in ROWS[1:]:
        trained = [stage for stage in recipe_of(row).stages if isinstance(stage, Distill)]
        assert len(trained) == ("distill" not in row.without)
        budget = (LONG if row.kind == "chain" else BUDGET)["distill"]
        for stage in trained:
            assert f"distill.samples={stage.samples}" in budget
            assert f"distill.training.steps={stage.training.steps}" in budget
            assert f"distill.training.calls={stage.training.calls}" in budget


def test_fine_tuning_takes_the_place_of_distillation():
    stages, expected = recipe_of(FINE_TUNED).stages, recipe_of(BEST_DEPTH).stages
    assert [type(stage) for stage in stages[1:]] == [FineTune]
    assert stages[0] == expected[0]
    changed = stages[1].model_dump() | {"kind": "distill"}
    features = changed["training"].pop("features")
    same = Distill.model_validate(expected[1].model_dump()).model_dump()
    assert features == 0.0
    same["training"].pop("features")
    assert changed == same


def test_the_row_of_the_original(of_original, original):
    assert sqnr(of_original) is None
    assert of_original["kept_blocks"] == {}
    assert of_original["file_bytes"] == (original.onnx / "model.onnx").stat().st_size
    assert of_original["speed"]["original_ms"] > 0


@pytest.mark.parametrize("fine_tune", [False, True])
def test_a_row_of_half_the_blocks(fine_tune, of_original, conditions, original, tmp_path):
    row = Row("half", "depth", recipe="prune-depth", overrides=QUICK, fine_tune=fine_tune)
    entry = worker.run(row, conditions, tmp_path, original)
    assert len(entry["kept_blocks"]["transformer_blocks"]) == 2
    blocks = load_denoiser(conditions.model).transformer.transformer_blocks
    one = sum(parameter.numel() for parameter in blocks[1].parameters())
    assert of_original["parameters"] - entry["parameters"] >= one
    assert entry["file_bytes"] < of_original["file_bytes"]
    assert entry["fidelity"]["samples"] == SAMPLES
    assert entry["seconds"] > 0
    stored = json.loads((tmp_path / "run" / "report.json").read_text())["size"]["parameters"]
    assert entry["parameters"] == stored


def test_what_rows_begin_with_is_done_once(conditions, tmp_path):
    """The distilled row finds the blocks of the one that is not trained, and nothing of another choice."""
    whole = Row("whole", "depth", recipe="prune-depth", overrides=QUICK)
    part = Row("part", "part", recipe="prune-depth", overrides=QUICK, without=("distill",))
    other = Row("other", "depth", recipe="prune-depth", overrides=(*QUICK, "prune-depth.ratio=0.25"))
    folders = {row.name: tmp_path / row.name for row in (whole, part, other)}

    def taken(row: Row, code: str = "1") -> list[str]:
        return take_over(conditions.model, recipe_of(row), folders[row.name], code)

    assert taken(part) == []
    make_by_recipe(recipe_of(part), conditions, folders["part"])
    assert taken(whole) == []  # nobody has measured the other row
    (folders["part"] / "result.json").write_text(json.dumps({"code": "1"}))
    assert taken(whole, "2") == []
    assert taken(whole) == ["calibration", "prune-depth"]
    (manifest,) = folders["whole"].glob("run/stages/01-prune-depth-*/manifest.json")
    before = manifest.read_bytes()
    make_by_recipe(recipe_of(whole), conditions, folders["whole"])
    assert manifest.read_bytes() == before
    assert len(list(folders["whole"].glob("run/stages/02-distill-*"))) == 1
    assert taken(other) == ["calibration"]
    assert taken(whole) == []


def scheduler(kind: str) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=kind,
        timestep_spacing="trailing",
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_diffusion_target_gives_the_image_back(kind):
    """x0 from x_t and the target: for v it is α x - σ v (Salimans & Ho 2022, section 4)."""
    generator = torch.Generator().manual_seed(0)
    plan = scheduler(kind)
    images = torch.rand(5, 1, 4, 4, generator=generator) * 2 - 1
    calls, targets = noised_calls(
        plan, images, [0, 1, 2, 3, 4], 7, steps=4, rows=200, count=6, generator=generator
    )
    assert [call.timestep for call in calls] == [999, 749, 499, 249, 999, 749]
    for call, answer in zip(calls, targets, strict=True):
        x, labels = call.kwargs["hidden_states"].double(), call.kwargs["class_labels"]
        assert (call.kwargs["timestep"] == call.timestep).all()
        power = float(plan.alphas_cumprod[int(call.timestep)])
        alpha, sigma = math.sqrt(power), math.sqrt(1 - power)
        found = {
            "epsilon": lambda x, y, a=alpha, s=sigma: (x - s * y) / a,
            "v_prediction": lambda x, y, a=alpha, s=sigma: a * x - s * y,
            "sample": lambda x, y: y,
        }[kind](x, answer.double())
        known = labels != 7
        assert 0.8 < known.double().mean() < 0.97
        expected = images[labels[known]].double()
        if alpha > 0.1:  # epsilon of nothing but noise says little about the image
            torch.testing.assert_close(found[known], expected, atol=1e-4, rtol=0)


def test_a_target_that_is_not_known():
    plan = scheduler("epsilon")
    plan.register_to_config(prediction_type="flow")
    zeros = torch.zeros(1, 1, 2, 2)
    with pytest.raises(InputError, match="prediction_type flow"):
        target(plan, zeros, zeros, torch.tensor([1]))


def test_fine_tuning_sees_the_ends_of_the_trajectories(conditions, monkeypatch):
    seen = []

    def watched(plan, images, labels, *rest, **named):
        seen.append((images, labels))
        return noised_calls(plan, images, labels, *rest, **named)

    monkeypatch.setattr("pruning.finetune.noised_calls", watched)
    denoiser = load_denoiser(conditions.model)
    training = {"steps": 3, "calls": 2}
    stage = Distill.model_validate({"samples": 4, "sampling_steps": 2, "batch": 2, "training": training})
    calls, targets = FineTune.like(stage).trajectories(denoiser)
    recorded, _ = stage.trajectories(denoiser)
    assert len(calls) == len(targets) == 6
    assert {call.timestep for call in calls} == {call.timestep for call in recorded}
    shapes = {call.kwargs["hidden_states"].shape for call in [*calls, *recorded]}
    assert len(shapes) == 1
    ((images, labels),) = seen
    drawn = denoiser.sample(range(3_000_000, 3_000_004), steps=2)
    torch.testing.assert_close(images / 2 + 0.5, drawn)
    assert labels == denoiser.conditions(4)


def test_rows_are_measured_once_and_say_why_not(monkeypatch, tmp_path):
    made: list[str] = []

    def work(job):
        made.append(job["row"]["name"])
        if job["row"]["name"] == "small":
            return "StageError: the disk is full"
        Path(job["folder"]).mkdir(parents=True, exist_ok=True)
        (Path(job["folder"]) / "result.json").write_text(json.dumps({"row": job["row"]}))
        return None

    monkeypatch.setattr(cli, "_work", work)
    results, conditions = Results({}), {"model": "m"}
    tiny, small = (row for row in ROWS if row.name in ("tiny", "small"))
    for _ in range(2):
        assert cli.measure(tiny, conditions, tmp_path, results) is None
    assert cli.measure(small, conditions, tmp_path, results) == "StageError: the disk is full"
    assert made == ["tiny", "small"]
    odd = Row("odd", "part", recipe="tiny", overrides=("distill.step=3",))
    assert "step" in cli.measure(odd, conditions, tmp_path, results)
    assert set(results.missing) == {"small", "odd"}
    assert Row.from_data(results.get("tiny")["row"]) == tiny
