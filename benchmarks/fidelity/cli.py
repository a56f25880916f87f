"""The command."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ditpress.errors import DitpressError
from ditpress.files import sha256_file
from fidelity import bounds, tables
from fidelity.results import Results, row_key
from fidelity.rows import KINDS, ORIGINAL, Row, select
from marks import write_between

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ROOT / "benchmarks"
RESULTS = Path("benchmarks") / "results" / "fidelity.json"
PAGE = Path("docs") / "fidelity.md"
_DISTRIBUTIONS = ("torch", "diffusers", "onnxruntime", "bitsandbytes", "torchao")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/fidelity", description="Every recipe against plain rounding and other tools."
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
    parser.add_argument("--noise-sets", type=int, default=5, help="sets of seeds of the original (default 5)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "bench-out" / "fidelity",
        help="runs and results, resumed (default bench-out/fidelity)",
    )
    parser.add_argument("--fresh", action="store_true", help="measure the rows again")
    parser.add_argument("--list", action="store_true", help="the names of the rows; measures nothing")
    parser.add_argument("--report", action="store_true", help="measure nothing: table and checks again")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE} and {RESULTS} as well")
    args = parser.parse_args(arguments)
    if args.samples < 2 or args.noise_sets < 1:
        parser.error("--samples: expected at least 2; --noise-sets: at least 1")
    try:
        rows = select(args.only)
    except ValueError as error:
        parser.error(f"--only {error}")
    if args.list:
        print("\n".join(row.name for row in rows))
        return
    raise SystemExit(_run(args, [] if args.report else rows))


def _run(args: argparse.Namespace, rows: list[Row]) -> int:
    import torch

    from ditpress.validate.environment import environment
    from fidelity.original import Conditions

    conditions = Conditions(args.model, args.samples, args.steps, args.noise_sets)
    here = environment()
    described = {
        **asdict(conditions),
        "cpu": here.cpu,
        "isa": here.isa,
        "threads": torch.get_num_threads(),
        "versions": {name: version for name in _DISTRIBUTIONS if (version := _version(name))},
    }
    path = args.out / "results.json"
    results = Results.resume(path if path.is_file() else ROOT / RESULTS, described)
    failed = 0
    for row in rows:
        reason = measure(row, asdict(conditions), args.out, results, fresh=args.fresh)
        if reason is not None:
            print(f"{row.name}: not measured: {reason}", flush=True)
            failed += row.kind in ("original", "recipe", "ablation") and "no recipe" not in reason
        results.save(path)
        if row is ORIGINAL and reason is not None:
            return 1  # all others are measured against it
    lines = tables.report(results)
    (args.out / "fidelity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    checked = bounds.checks(results)
    print("\n".join(tables.checks_table(checked)))
    print(f"written: {args.out / 'fidelity.md'}")
    code = code_version()
    if old := [row.name for row, entry in results.measured(*KINDS) if entry["code"] != code]:
        print(f"measured by another version of the package, --fresh does it again: {', '.join(old)}")
    if args.write:
        results.save(ROOT / RESULTS)
        write_between(ROOT / PAGE, "fidelity", lines)
    return int(failed > 0 or any(check.holds is False for check in checked))


def measure(
    row: Row, conditions: dict[str, Any], out: Path, results: Results, *, fresh: bool = False
) -> str | None:
    """Measure one row in a process of its own, unless it was; the reason where it cannot be."""
    try:
        key = row_key(_content(row), conditions)
    except (LookupError, DitpressError) as error:  # no such recipe, or other settings than the row expects
        return _missed(results, row, str(error))
    folder = out / f"{row.name}-{key}"
    done = folder / "result.json"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if not done.is_file():
        print(f"{row.name} ...", flush=True)
        job = {
            "row": row.to_data(),
            "conditions": conditions,
            "folder": str(folder),
            "original": str(out / f"original-{row_key(_content(ORIGINAL), conditions)}"),
            "like": None,
            "code": code_version(),
        }
        if row.kind == "plain":
            (like,) = select([row.of])[1:]
            job["like"] = str(out / f"{like.name}-{row_key(_content(like), conditions)}" / "run")
            if like.name not in results.entries:
                return _missed(results, row, f"{like.name} was not measured")
        reason = _work(job)
        if reason is not None:
            return _missed(results, row, reason)
    results.add(row, json.loads(done.read_text(encoding="utf-8")))
    return None


def _content(row: Row) -> Any:
    """What decides the row's figures: its data, and the recipe with all defaults."""
    if row.kind == "plain":
        return [row.to_data(), _content(next(other for other in select([row.of]) if other.name == row.of))]
    if not row.recipe:
        return row.to_data()
    from ditpress.recipes.builtin import builtin_names

    if row.recipe not in builtin_names():
        raise LookupError(f"no recipe {row.recipe} yet")
    from fidelity.recipes import recipe_of

    compression = recipe_of(row).compression()
    if row.kind == "ablation":
        (parent,) = (other for other in select([row.of]) if other.name == row.of)
        if compression == recipe_of(parent).compression():
            raise LookupError(f"the recipe itself: {row.recipe} is without it")
    return [row.to_data(), compression]


def _missed(results: Results, row: Row, reason: str) -> str:
    results.miss(row, reason)
    return reason


def _work(job: dict[str, Any]) -> str | None:
    """Run the worker; the last it said where it failed."""
    from speed.processes import reason

    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    process = subprocess.run(
        [sys.executable, "-P", "-m", "fidelity.worker", json.dumps(job)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    return None if process.returncode == 0 else reason(process.stderr, process.returncode)


def code_version() -> str:
    """Twelve digits of a hash over everything in the package that can change a figure."""
    import ditpress

    root = Path(ditpress.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".yaml", ".so"))
    return row_key({path.relative_to(root).as_posix(): sha256_file(path) for path in files})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
