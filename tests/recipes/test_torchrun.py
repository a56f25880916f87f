"""Two processes of torchrun on gloo against one process: the same loss curve, the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_together
from safetensors.torch import load_file
from tiny_dit import tiny_pipeline

from ditpress.compress.distill.trainer import Training, distill
from ditpress.errors import InputError
from ditpress.processes import Processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    tiny_pipeline(num_layers=4).save_pretrained(folder / "model")
    train_together.main(folder, "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(Path(train_together.__file__)), str(folder), "two"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_have_the_loss_curve_of_one(folder: Path) -> None:
    size_of_one, one = json.loads((folder / "one.json").read_text())
    size_of_two, two = json.loads((folder / "two.json").read_text())
    assert (size_of_one, size_of_two) == (1, 2)
    assert one[-1] < 0.5 * one[0]
    assert len(one) == len(two) == 25
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(torch.tensor(two[:3]), torch.tensor(one[:3]), rtol=1e-5, atol=0.0)


def test_two_processes_end_in_the_model_of_one(folder: Path) -> None:
    weights = [
        load_file(folder / name / "model/transformer/diffusion_pytorch_model.safetensors")
        for name in ("one", "two")
    ]
    original = load_file(folder / "model/transformer/diffusion_pytorch_model.safetensors")
    assert set(weights[0]) == set(weights[1])
    changed = "transformer_blocks.0.ff.net.2.weight"
    assert not torch.allclose(weights[0][changed], original[changed], rtol=0.0, atol=1e-5)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0.0, atol=1e-5)
    recipes = [(folder / name / "recipe.yaml").read_text() for name in ("one", "two")]
    assert recipes[0] == recipes[1]
    assert not list((folder / "two").glob("stages/.work-*"))
    assert (folder / "two" / "report.json").is_file()


def test_more_processes_than_calls_are_refused() -> None:
    layer = torch.nn.Linear(2, 2)
    groups = [{"params": list(layer.parameters())}]
    call = train_together.record_calls(
        train_together.load_denoiser(tiny_pipeline()), samples=1, steps=1, guidance=1.0, seed=0
    )
    with pytest.raises(InputError, match=r"2 calls a step for 3 processes; raise training\.calls"):
        distill(layer, layer, call, Training(), groups, processes=Processes(0, 3))
