"""Whole runs with guidance built in, alone and quantized: one pass everywhere after the stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_model import QUICK, hashes, save_model

import ditpress
from ditpress.errors import InputError
from ditpress.load import load_denoiser

TRAINING = {"samples": 8, "sampling_steps": 4, "batch": 4, "guidance": 2.0}
STAGES = [
    {"distill-guidance": TRAINING | {"training": {"steps": 150, "learning_rate": 2e-3}}},
    {"quantize": {"weights": {"format": "int8", "group": "channel"}}},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "chain.yaml"
    path.write_text(yaml.safe_dump({"name": "chain", "stages": STAGES}))
    return path


def test_a_chain_is_judged_by_the_guided_original(model: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ditpress.compress(str(model), recipe, out=out, overrides=QUICK)
    before = hashes(out)
    (manifest,) = out.glob("stages/*-validation-*/manifest.json")
    facts = json.loads(manifest.read_text())["facts"]
    assert facts["sqnr_db"] > 15
    loaded = load_denoiser(str(out))
    assert loaded.built_in_guidance == loaded.default_guidance == 2.0
    assert json.loads((out / "model" / "model_index.json").read_text())["built_in_guidance"] == 2.0
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert written["validation"]["guidance"] == written["calibration"]["guidance"] == 2.0
    # Gone on from the first stage, the run knows again what is built in.
    for part in ("02-quantize-*", "*-model-*", "*-onnx-*", "*-validation-*"):
        (manifest,) = out.glob(f"stages/{part}/manifest.json")
        manifest.unlink()
    ditpress.compress(str(model), recipe, out=out, overrides=QUICK)
    assert hashes(out) == before


def test_images_at_another_scale_are_refused(model: Path, recipe: Path, tmp_path: Path) -> None:
    overrides = [*QUICK, "validation.guidance=3.0"]
    with pytest.raises(InputError, match=r"validation\.guidance 3: distill-guidance builds in 2"):
        ditpress.compress(str(model), recipe, out=tmp_path / "out", overrides=overrides)
