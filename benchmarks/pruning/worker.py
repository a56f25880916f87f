"""One row in a process of its own: ``python -m pruning.worker '<job as JSON>'`` writes ``result.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from comparison.judge import judge, make_by_recipe, make_original
from comparison.original import Conditions, Original
from comparison.process import RUN, finish
from ditpress.recipes import bench
from pruning.recipes import recipe_of
from pruning.rows import Row
from pruning.share import take_over


def run(row: Row, conditions: Conditions, folder: Path, original: Original, code: str = "") -> dict[str, Any]:
    """Make, draw, measure and time one row; returns what ``result.json`` holds.

    Args:
        folder: of the row.
        original: of this run, finished unless this is its row.
        code: the version of the package.
    """
    if row.kind == "original":
        made, onnx = make_original(conditions, original), original.onnx
        parameters, kept = _parameters(made.transformer), {}
    else:
        recipe = recipe_of(row)
        take_over(conditions.model, recipe, folder, code)
        made, onnx = make_by_recipe(recipe, conditions, folder), folder / RUN / "onnx" / "transformer"
        report = json.loads((folder / RUN / "report.json").read_text(encoding="utf-8"))
        parameters, kept = report["size"]["parameters"], _kept(folder / RUN)
    entry = judge(made, row, conditions, original)
    speed = bench.measure(original.folder / "onnx", onnx, original.calls)
    return entry | {"parameters": parameters, "kept_blocks": kept, "speed": speed.model_dump(mode="json")}


def _parameters(transformer: Any) -> int:
    return sum(parameter.numel() for parameter in transformer.parameters())


def _kept(run_folder: Path) -> dict[str, list[int]]:
    """The blocks that stayed, by list; of rows that lost none, nothing."""
    for manifest in run_folder.glob("stages/*-prune-depth-*/manifest.json"):
        return dict(json.loads(manifest.read_text(encoding="utf-8"))["facts"]["kept_blocks"])
    return {}


def main() -> None:
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    row, conditions = Row.from_data(job["row"]), Conditions(**job["conditions"])
    finish(job, run(row, conditions, folder, Original(Path(job["original"])), job["code"]))


if __name__ == "__main__":
    main()
