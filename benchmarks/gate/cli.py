"""The command: a run and its baseline, regressions planted in copies of it, and other seeds of it."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ditpress
from comparison.process import ROOT, code_version
from ditpress.files import write_atomic
from ditpress.recipes.check import check
from ditpress.validate.environment import environment
from gate.measure import Entry, checked, everywhere, planted
from gate.rows import EVERYWHERE, PLANTS, SEEDS
from gate.tables import failures, report
from marks import write_between

PAGE = ROOT / "docs" / "gate.md"


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not measured yet; ends with 1 where a regression was missed or a seed failed."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gate", description=__doc__)
    parser.add_argument("--model", default="zoo:mnist-dit", help="default zoo:mnist-dit")
    parser.add_argument("--recipe", default="w4a8", help="default w4a8")
    parser.add_argument("--samples", type=int, default=128, help="images of a check (default 128)")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps (default 8: it takes minutes)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench-out" / "gate", help="default bench-out/gate"
    )
    parser.add_argument("--fresh", action="store_true", help="compress and measure again")
    parser.add_argument("--write", action="store_true", help="the tables into docs/gate.md as well")
    args = parser.parse_args(arguments)
    conditions = {"model": args.model, "recipe": args.recipe, "samples": args.samples, "steps": args.steps}
    results = measure(conditions, args.out, fresh=args.fresh)
    lines = report(results)
    print("\n".join(lines))
    if args.write:
        write_between(PAGE, "gate", lines)
    if found := failures(results):
        raise SystemExit("the gate did not do its work: " + "; ".join(found))


def measure(conditions: dict[str, Any], out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """All entries; those that ``out`` has of the same package and conditions are taken from there."""
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    path, code = out / "results.json", code_version()
    results: dict[str, Any] = {
        "conditions": conditions,
        "code": code,
        "cpu": environment().cpu,
        "entries": {},
    }
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if all(before[name] == results[name] for name in ("conditions", "code", "cpu")):
            results = before
    run, baseline = out / "run", out / "baseline.json"
    drawing = [f"validation.{name}={conditions[name]}" for name in ("samples", "steps")]
    ditpress.compress(
        conditions["model"], conditions["recipe"], out=run, overrides=[*drawing, "validation.speed=false"]
    )
    if not results["entries"]:
        baseline.unlink(missing_ok=True)
        check(run, baseline, update=True)

    def once(name: str, work: Callable[[], Entry]) -> None:
        if name not in results["entries"]:
            print(f"{name} ...", flush=True)
            results["entries"][name] = work()
            write_atomic(path, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())

    for plant in PLANTS:
        once(plant.name, partial(planted, plant, run, baseline))
    for text, damage in EVERYWHERE.items():
        once(text, partial(everywhere, damage, run, baseline))
    for seed in SEEDS:
        once(f"seed {seed}", partial(checked, run, baseline, seed))
    return results
