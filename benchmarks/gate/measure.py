"""One check of a run, damaged or not, and what came of it as plain data."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ditpress.errors import InputError
from ditpress.kernels.wrap import main_linear
from ditpress.recipes.check import check
from ditpress.recipes.judge import Judge, layers_of, sqnr_figure
from ditpress.recipes.steps import ERROR_CALLS, spread
from ditpress.validate.gate.baseline import load_baseline
from ditpress.validate.gate.compare import Verdict, judge
from ditpress.validate.gate.outputs import to_data
from ditpress.validate.sensitivity import total_energy
from gate.plants import Damage, Plant

PASSED, FAILED, REFUSED = "passed", "failed", "refused"
Entry = dict[str, Any]


def checked(out: Path, baseline: Path, seed: int | None = None) -> Entry:
    """The outcome of ``ditpress check``: verdicts of all rules, or the reason of a refusal."""
    started = time.perf_counter()
    try:
        outcome = check(out, baseline, seed=seed)
    except InputError as error:
        return {"outcome": REFUSED, "reason": str(error), "seconds": time.perf_counter() - started}
    assert outcome is not None
    return {
        "outcome": PASSED if outcome.passed else FAILED,
        "verdicts": [_data(verdict) for verdict in outcome.verdicts],
        "seconds": time.perf_counter() - started,
    }


def planted(plant: Plant, out: Path, baseline: Path) -> Entry:
    """The outcome of a check of a copy of ``out`` with the regression in it."""
    with tempfile.TemporaryDirectory(prefix="ditpress-gate-") as scratch:
        copy = Path(shutil.copytree(out, Path(scratch) / "out"))
        plant.apply(copy)
        return checked(copy, baseline)


def everywhere(damage: Damage, out: Path, baseline: Path) -> Entry:
    """How many layers the rule on layers catches, were each the only one with this damage.

    The error of a layer is that for the inputs it has in the reference, so all are damaged at once.
    """
    before = load_baseline(baseline)
    bench = Judge(out, call_seed=before.settings.seed)
    names = before.figures.tables["layer_sqnr_db"]
    for name in names:
        damage(main_linear(bench.shipped.transformer.get_submodule(name)))
    calls = spread(bench.calls(), ERROR_CALLS)
    rule = before.parsed_rules()["layer_sqnr_db"]
    found = []
    for name, steps in layers_of(out, bench.original, bench.shipped, calls).items():
        rows = total_energy(steps)
        assert rows is not None
        found.append(_data(judge("layer_sqnr_db", rule, sqnr_figure(rows), names[name], name)))
    missed = [verdict["entry"] for verdict in found if verdict["passed"]]
    return {"layers": len(found), "caught": len(found) - len(missed), "missed": missed, "verdicts": found}


def holds(plant: Plant, entry: Entry) -> bool:
    """Whether the gate did what it is for."""
    if not plant.rules:
        return entry["outcome"] == REFUSED and f" {plant.setting} " in entry["reason"]
    failed = {verdict["metric"] for verdict in entry.get("verdicts", ()) if not verdict["passed"]}
    return entry["outcome"] == FAILED and bool(plant.rules & failed)


def _data(verdict: Verdict) -> dict[str, Any]:
    (rule,) = to_data([verdict])["rules"]
    return dict(rule)
