"""What was measured, by the rows of this table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from comparison import results
from comparison.results import fid, sqnr
from pruning.rows import ROWS


class Results(results.Results):
    """Entries by row, and why rows were not measured."""

    rows = ROWS


@dataclass(frozen=True)
class Mean:
    """Mean over seeds, and the standard deviation from one to the next (0 of one)."""

    value: float
    deviation: float

    @classmethod
    def of(cls, values: list[float]) -> Mean:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Seeds:
    """Rows that differ by the seed alone.

    Attributes:
        count: how many were measured, ``wanted`` of them.
        sqnr: output SQNR in dB.
        fid: to the real images.
    """

    count: int
    wanted: int
    sqnr: Mean
    fid: Mean
    recognised: Mean

    @property
    def complete(self) -> bool:
        return self.count == self.wanted


def over_seeds(found: results.Results, of: str) -> Seeds | None:
    """The rows ``of`` together; None: none was measured."""
    rows = [row for row in ROWS if row.of == of]
    entries = [entry for row in rows if (entry := found.get(row.name)) is not None]
    if not entries:
        return None
    return Seeds(
        len(entries),
        len(rows),
        Mean.of([sqnr(entry) or 0.0 for entry in entries]),
        Mean.of([fid(entry) for entry in entries]),
        Mean.of([entry["recognised"] or 0.0 for entry in entries]),
    )
