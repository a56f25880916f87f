"""Samples as a table: the same for any number of processes, resumable, and without the images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipes.tiny_model import save_model
from safetensors.torch import load_file, save_file
from validate.conftest import save_clip

from ditpress.errors import InputError
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.processes import Processes
from ditpress.recipes import sampling
from ditpress.recipes.sampling import Drawing, draw_table
from ditpress.validate import fidelity
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.table import Networks, tabulate

DRAWING = Drawing(samples=150, first_seed=7, steps=2, guidance=1.0)

# The first process alone computes figures, while the others are already gone.
WORKER = """
import json
import sys
from pathlib import Path
from safetensors.torch import save_file
from ditpress.load.denoiser import load_denoiser
from ditpress.processes import join
from ditpress.recipes.sampling import Drawing, draw_table
from ditpress.validate import fidelity
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.table import Networks

folder = Path(sys.argv[1])
models = [load_denoiser(str(folder / name)) for name in ("a", "b")]
networks = Networks(FeatureExtractor(folder / "clip"))
drawn = draw_table(*models, Drawing(150, 7, 2, 1.0), networks, folder / "torchrun", join())
if drawn is not None:
    save_file(drawn[0], folder / "table.safetensors")
    rows = [drawn[0][side + ".features"] for side in ("compressed", "original")]
    figures = [join().size, fidelity.fid(*rows), fidelity.kid(*rows)]
    (folder / "figures.json").write_text(json.dumps(figures))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and a CLIP."""
    path = tmp_path_factory.mktemp("sampling")
    save_model(path / "a", seed=0)
    save_model(path / "b", seed=1)
    save_clip(path / "clip")
    return path


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[Denoiser, Denoiser]:
    return load_denoiser(str(folder / "a")), load_denoiser(str(folder / "b"))


@pytest.fixture(scope="module")
def networks(folder: Path) -> Networks:
    return Networks(FeatureExtractor(folder / "clip"))


@pytest.fixture(scope="module")
def alone(models: tuple[Denoiser, Denoiser], networks: Networks, folder: Path) -> dict[str, torch.Tensor]:
    drawn = draw_table(*models, DRAWING, networks, folder / "alone")
    assert drawn is not None
    return drawn[0]


class InTurn(Processes):
    """Processes that are played one after the other."""

    def wait(self) -> None:
        """Nobody else is there."""


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_the_rows_are_those_of_images_drawn_at_once(
    models: tuple[Denoiser, Denoiser], networks: Networks, alone: dict[str, torch.Tensor]
) -> None:
    images = [model.sample(range(7, 157), steps=2, guidance=1.0) for model in models]
    captions = models[0].captions(models[0].conditions(150))
    expected = tabulate(images[0], images[1], networks, captions)
    for name, rows in expected.items():
        torch.testing.assert_close(alone[name], rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_number_of_processes_gives_the_same_bits(
    models: tuple[Denoiser, Denoiser],
    networks: Networks,
    alone: dict[str, torch.Tensor],
    tmp_path: Path,
    count: int,
) -> None:
    for rank in reversed(range(count)):  # rank 0 puts together what all have drawn
        drawn = draw_table(*models, DRAWING, networks, tmp_path, InTurn(rank, count))
        assert (drawn is None) == (rank > 0)
    assert drawn is not None
    assert equal(drawn[0], alone)


def test_torchrun(folder: Path, alone: dict[str, torch.Tensor]) -> None:
    (folder / "worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(folder / "worker.py"), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert equal(load_file(folder / "table.safetensors"), alone)
    rows = [alone[f"{side}.features"] for side in ("compressed", "original")]
    figures = json.loads((folder / "figures.json").read_text())
    assert figures == [2, fidelity.fid(*rows), fidelity.kid(*rows)]


def test_a_killed_measurement_goes_on_where_it_stopped(
    models: tuple[Denoiser, Denoiser],
    networks: Networks,
    alone: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []

    def killed(*arguments: object) -> dict[str, torch.Tensor]:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(len(arguments[0]))
        return tabulate(*arguments)

    monkeypatch.setattr(sampling, "tabulate", killed)
    with pytest.raises(KeyboardInterrupt):
        draw_table(*models, DRAWING, networks, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "00000064.safetensors").write_bytes(b"a torn block")  # is drawn again
    drawn.clear()
    result = draw_table(*models, DRAWING, networks, tmp_path)
    assert drawn == [64, 22]
    assert result is not None
    assert equal(result[0], alone)


def test_blocks_hold_features_and_a_few_images(
    models: tuple[Denoiser, Denoiser], networks: Networks, alone: dict[str, torch.Tensor], folder: Path
) -> None:
    blocks = sorted((folder / "alone").iterdir())
    assert [int(block.stem) for block in blocks] == [0, 64, 128]
    later = load_file(blocks[1])
    assert all(rows.ndim <= 2 for rows in later.values())
    first = load_file(blocks[0])
    assert first["shown.original"].shape == (16, 1, 8, 8)
    torch.testing.assert_close(
        first["shown.compressed"], models[1].sample(range(7, 71), steps=2, guidance=1.0)[:16]
    )


def test_models_of_different_image_sizes_are_refused(
    models: tuple[Denoiser, Denoiser], networks: Networks, tmp_path: Path
) -> None:
    from tiny_dit import tiny_pipeline

    tiny_pipeline(sample_size=12).save_pretrained(tmp_path / "larger")
    with pytest.raises(InputError, match="draw images of the same size"):
        draw_table(models[0], load_denoiser(str(tmp_path / "larger")), DRAWING, networks, tmp_path / "work")


def test_a_broken_block_of_nan_is_no_block(tmp_path: Path) -> None:
    save_file({"lpips": torch.tensor([float("nan")])}, tmp_path / "block")
    assert not sampling._is_whole(tmp_path / "block")
