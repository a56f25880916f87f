"""The table of report.html with the error of every low-bit layer at every timestep: where it is, and when."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ditpress.validate.report import LayerDetail

BLOCK = re.compile(r"(.*?\.\d+)\.(.+)")  # transformer_blocks.3 | attn1.to_q


@dataclass(frozen=True)
class Cell:
    """SQNR in dB; ``heat``: 0 for the best of the table, 100 for the worst."""

    sqnr_db: float
    heat: int


@dataclass(frozen=True)
class Group:
    """The layers of one block by their names in it, each with a cell per timestep; None: not reached."""

    block: str
    layers: list[tuple[str, list[Cell | None]]]


@dataclass(frozen=True)
class ErrorTable:
    """``timesteps``: of the columns, in the order of sampling."""

    timesteps: list[float]
    groups: list[Group]
    worst_db: float
    best_db: float


def error_table(layers: Sequence[LayerDetail]) -> ErrorTable | None:
    """The table; None where no layer was measured."""
    measured = [layer for layer in layers if layer.timesteps]
    if not measured:
        return None
    values = [point.sqnr_db for layer in measured for point in layer.timesteps]
    timesteps = sorted({point.timestep for layer in measured for point in layer.timesteps}, reverse=True)
    worst, best = min(values), max(values)
    groups: dict[str, Group] = {}
    for layer in measured:
        found = BLOCK.fullmatch(layer.name)
        block, name = (found[1], found[2]) if found else ("", layer.name)
        cells = {
            point.timestep: Cell(point.sqnr_db, _heat(point.sqnr_db, worst, best))
            for point in layer.timesteps
        }
        row = (name, [cells.get(timestep) for timestep in timesteps])
        groups.setdefault(block, Group(block, [])).layers.append(row)
    return ErrorTable(timesteps, list(groups.values()), worst, best)


def _heat(value: float, worst: float, best: float) -> int:
    return 0 if best == worst else round(100 * (best - value) / (best - worst))
