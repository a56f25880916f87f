"""The command of a benchmark: which rows, measured or not, and where the tables go."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comparison.checks import Check, checks_table
from comparison.process import ROOT, code_version
from comparison.results import Results
from marks import write_between

_DISTRIBUTIONS = ("torch", "diffusers", "onnxruntime", "bitsandbytes", "torchao")


@dataclass(frozen=True)
class Benchmark:
    """One table.

    Attributes:
        name: of its package, its page in docs/, its file in benchmarks/results and its marks.
        description: for ``--help``.
        results: the class with its rows.
        select: rows by patterns; raises ValueError.
        measure: one row into results; the reason where it cannot be.
        report: the page.
        checks: the requirements.
        optional: kinds of rows that may fail to be measured, such as other tools.
        noise_sets: sets of seeds of the original.
        summary: what the README shows between marks of the same name.
    """

    name: str
    description: str
    results: type[Results]
    select: Callable[[Sequence[str]], list[Any]]
    measure: Callable[..., str | None]
    report: Callable[[Results], list[str]]
    checks: Callable[[Results], list[Check]]
    optional: frozenset[str] = frozenset()
    noise_sets: int = 5
    summary: Callable[[Results], list[str]] | None = None

    @property
    def page(self) -> Path:
        return Path("docs") / f"{self.name}.md"

    @property
    def file(self) -> Path:
        return Path("benchmarks") / "results" / f"{self.name}.json"


def run(benchmark: Benchmark, arguments: list[str] | None = None) -> None:
    """The command; ends the process with 1 where a row failed or a requirement does not hold."""
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{benchmark.name}", description=benchmark.description
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW",
        help="name of a row, with * and ?; may be repeated. The others keep their figures",
    )
    parser.add_argument("--model", default="zoo:mnist-dit", help="default zoo:mnist-dit")
    parser.add_argument("--samples", type=int, default=500, help="images of every row (default 500)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    parser.add_argument(
        "--noise-sets",
        type=int,
        default=benchmark.noise_sets,
        help=f"sets of seeds of the original (default {benchmark.noise_sets})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "bench-out" / benchmark.name,
        help=f"runs and results, resumed (default bench-out/{benchmark.name})",
    )
    parser.add_argument("--fresh", action="store_true", help="measure the rows again")
    parser.add_argument("--list", action="store_true", help="the names of the rows; measures nothing")
    parser.add_argument("--report", action="store_true", help="measure nothing: table and checks again")
    parser.add_argument(
        "--write", action="store_true", help=f"into {benchmark.page} and {benchmark.file} as well"
    )
    args = parser.parse_args(arguments)
    if args.samples < 2 or args.noise_sets < 1:
        parser.error("--samples: expected at least 2; --noise-sets: at least 1")
    try:
        rows = benchmark.select(args.only)
    except ValueError as error:
        parser.error(f"--only {error}")
    if args.list:
        print("\n".join(row.name for row in rows))
        return
    raise SystemExit(_run(benchmark, args, [] if args.report else rows))


def _run(benchmark: Benchmark, args: argparse.Namespace, rows: list[Any]) -> int:
    import torch

    from comparison.original import Conditions
    from ditpress.validate.environment import environment

    conditions = Conditions(args.model, args.samples, args.steps, args.noise_sets)
    here = environment()
    described = {
        **asdict(conditions),
        "cpu": here.cpu,
        "isa": here.isa,
        "threads": torch.get_num_threads(),
        "versions": {name: version for name in _DISTRIBUTIONS if (version := _version(name))},
    }
    path, kept = args.out / "results.json", ROOT / benchmark.file
    results = benchmark.results.resume(path if path.is_file() else kept, described)
    failed = 0
    for row in rows:
        reason = benchmark.measure(row, asdict(conditions), args.out, results, fresh=args.fresh)
        if reason is not None:
            print(f"{row.name}: not measured: {reason}", flush=True)
            failed += row.kind not in benchmark.optional and "no recipe" not in reason
        results.save(path)
        if row.kind == "original" and reason is not None:
            return 1  # all others are measured against it
    lines = benchmark.report(results)
    page = args.out / f"{benchmark.name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    checked = benchmark.checks(results)
    print("\n".join(checks_table(checked)))
    print(f"written: {page}")
    code = code_version()
    if old := [name for name, entry in results.entries.items() if entry["code"] != code]:
        print(f"measured by another version of the package, --fresh does it again: {', '.join(old)}")
    if args.write:
        results.save(kept)
        write_between(ROOT / benchmark.page, benchmark.name, lines)
        if benchmark.summary is not None:
            write_between(ROOT / "README.md", benchmark.name, benchmark.summary(results))
    return int(failed > 0 or any(check.holds is False for check in checked))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
