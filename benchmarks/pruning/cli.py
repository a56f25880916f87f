"""The command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comparison import command, process
from comparison.command import Benchmark
from pruning import bounds, tables
from pruning.results import Results
from pruning.rows import ORIGINAL, Row, select


def main(arguments: list[str] | None = None) -> None:
    command.run(
        Benchmark(
            name="pruning",
            description="Pruning, distillation, and their chains with quantizing.",
            results=Results,
            select=select,
            measure=measure,
            report=tables.report,
            checks=bounds.checks,
            noise_sets=1,
            summary=tables.summary,
        ),
        arguments,
    )


def measure(
    row: Row, conditions: dict[str, Any], out: Path, results: Results, *, fresh: bool = False
) -> str | None:
    """Measure one row in a process of its own, unless it was; the reason where it cannot be."""
    return process.measure(row, ORIGINAL, conditions, out, results, content=_content, work=_work, fresh=fresh)


def _content(row: Row) -> Any:
    """What decides the row's figures: its data, and the recipe with all defaults."""
    if row.kind == "original":
        return row.to_data()
    from pruning.recipes import recipe_of

    return [row.to_data(), recipe_of(row).compression()]


def _work(job: dict[str, Any]) -> str | None:
    return process.run_worker("pruning.worker", job)
