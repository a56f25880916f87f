"""The command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comparison import command, process
from comparison.command import Benchmark
from fidelity import bounds, tables
from fidelity.results import Results
from fidelity.rows import ORIGINAL, Row, select


def main(arguments: list[str] | None = None) -> None:
    command.run(
        Benchmark(
            name="fidelity",
            description="Every recipe against plain rounding and other tools.",
            results=Results,
            select=select,
            measure=measure,
            report=tables.report,
            checks=bounds.checks,
            optional=frozenset({"plain", "peer"}),
            summary=tables.summary,
        ),
        arguments,
    )


def measure(
    row: Row, conditions: dict[str, Any], out: Path, results: Results, *, fresh: bool = False
) -> str | None:
    """Measure one row in a process of its own, unless it was; the reason where it cannot be."""

    def needs(row: Row) -> dict[str, Any]:
        """A plain rounding follows the run of its recipe."""
        if row.kind != "plain":
            return {"like": None}
        (like,) = select([row.of])[1:]
        if like.name not in results.entries:
            raise LookupError(f"{like.name} was not measured")
        return {"like": str(process.row_folder(out, like, _content(like), conditions) / process.RUN)}

    return process.measure(
        row, ORIGINAL, conditions, out, results, content=_content, work=_work, needs=needs, fresh=fresh
    )


def _content(row: Row) -> Any:
    """What decides the row's figures: its data, and the recipe with all defaults."""
    if row.kind == "plain":
        return [row.to_data(), _content(next(other for other in select([row.of]) if other.name == row.of))]
    if not row.recipe:
        return row.to_data()
    from ditpress.recipes.builtin import builtin_names

    if row.recipe not in builtin_names():
        raise LookupError(f"no recipe {row.recipe} yet")
    from comparison.recipes import recipe_of

    compression = recipe_of(row).compression()
    if row.kind == "ablation":
        (parent,) = (other for other in select([row.of]) if other.name == row.of)
        if compression == recipe_of(parent).compression():
            raise LookupError(f"the recipe itself: {row.recipe} is without it")
    return [row.to_data(), compression]


def _work(job: dict[str, Any]) -> str | None:
    return process.run_worker("fidelity.worker", job)
