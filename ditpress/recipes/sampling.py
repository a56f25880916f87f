"""Same-seed samples of two models as a table: block by block, by any number of processes, resumable.

Block b holds the images 64 b .. 64 b + 63 whoever draws it, so the figures are the same for any number of
processes. Its rows are one file, and the images themselves are kept of a few only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ditpress.errors import InputError
from ditpress.files import write_atomic
from ditpress.load.denoiser import Denoiser
from ditpress.processes import ALONE, Processes
from ditpress.progress import track
from ditpress.validate.table import SIDES, Networks, Table, join, tabulate

BLOCK = 64
SHOWN = 16  # images kept of each model, for the report


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn: sample i of both models from the seed ``first_seed + i``."""

    samples: int
    first_seed: int
    steps: int | None
    guidance: float | None


def draw_table(
    original: Denoiser,
    compressed: Denoiser,
    drawing: Drawing,
    networks: Networks,
    work: Path,
    processes: Processes = ALONE,
) -> tuple[Table, dict[str, Tensor]] | None:
    """Draw what is missing in ``work`` and put all blocks together.

    Args:
        work: folder of the blocks, of this drawing and these models alone; what is in it counts as drawn.
        processes: that share out the blocks, each with the models and ``work`` on a disk that they share.

    Returns:
        the table and the first images by side, in the first process; None in the others.

    Raises:
        InputError: the models draw images of different sizes, or no images.
        StageError: a model draws NaN.
    """
    blocks = range(0, drawing.samples, BLOCK)
    mine = [start for index, start in enumerate(blocks) if index % processes.size == processes.rank]
    for start in track([start for start in mine if not _is_whole(_file(work, start))], "samples"):
        size = min(BLOCK, drawing.samples - start)
        seeds = range(drawing.first_seed + start, drawing.first_seed + start + size)
        images = [
            model.sample(seeds, steps=drawing.steps, guidance=drawing.guidance, batch_size=BLOCK, first=start)
            for model in (original, compressed)
        ]
        for model, drawn in zip((original, compressed), images, strict=True):
            if drawn.shape[1] not in (1, 3):
                raise InputError(
                    f"{model.source.spec}: draws {drawn.shape[1]} channels, not images (it has no VAE); "
                    "there is nothing to measure"
                )
        captions = original.captions(original.conditions(start + size)[start:])
        table = tabulate(images[0], images[1], networks, captions)
        if start == 0:
            pairs = zip(SIDES, images, strict=True)
            table |= {f"shown.{side}": drawn[:SHOWN].contiguous() for side, drawn in pairs}
        write_atomic(_file(work, start), save(table))
    processes.wait()
    if not processes.first:
        return None
    tables = list(_read(work, blocks))
    shown = {side: tables[0].pop(f"shown.{side}") for side in SIDES}
    return join(tables), shown


def _read(work: Path, blocks: range) -> Iterator[Table]:
    for start in blocks:
        yield load_file(_file(work, start))


def _is_whole(path: Path) -> bool:
    """Whether a block is there and can be read; files appear whole, but disks fail."""
    if not path.is_file():
        return False
    try:
        return all(bool(torch.isfinite(rows).all()) for rows in load_file(path).values())
    except (OSError, SafetensorError):
        return False


def _file(work: Path, start: int) -> Path:
    return work / f"{start:08d}.safetensors"
