"""What compressing a model of real size takes: DiT-XL/2, random weights, calibration cut down.

    python benchmarks/large.py --write        # an hour on one core; runs are kept in --out and resumed

Each recipe runs as a user runs it, by the command line in a process of its own. Nothing can be seen on images
of random weights: none are drawn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from comparison.checks import Check, checks_table
from comparison.process import ROOT
from ditpress.validate.report import Report, load_report
from marks import write_between

MODEL = "random:DiT-XL/2"
MEMORY = 12e9  # bytes a run may take
SETTINGS = ("calibration.samples=1", "calibration.steps=8")
RECIPES: dict[str, tuple[str, ...]] = {
    "w4a8": (),
    "fp4": (),
    "vq": ("vq.blocks.steps=8", "vq.finetune=null"),
}


def run(recipe: str, out: Path) -> Report:
    """The report of a run in ``out``, resumed where it was left. Raises CalledProcessError."""
    settings = [word for setting in (*SETTINGS, *RECIPES[recipe]) for word in ("--set", setting)]
    command = ["ditpress.cli", recipe, MODEL, "-o", str(out), "--samples", "0", "--quiet", *settings]
    subprocess.run([sys.executable, "-P", "-m", *command], check=True)
    return load_report(out / "report.json")


def peak(report: Report) -> int:
    """The most memory that the process held, bytes."""
    return max(record.peak_rss_bytes for record in report.stages)


def table(reports: dict[str, Report]) -> list[str]:
    """The rows, and how they were measured."""
    rows = ["| | checkpoint | ONNX | bits | minutes | peak memory |", "|---|---|---|---|---|---|"]
    for index, (name, report) in enumerate(reports.items()):
        size = report.size
        if index == 0:
            bits = 8 * size.original_bytes / size.parameters
            rows.append(f"| original | {size.original_bytes / 1e9:.2f} GB | | {bits:.0f} | | |")
        seconds = sum(record.seconds for record in report.stages)
        rows.append(
            f"| {name} | {size.compressed_bytes / 1e9:.2f} GB | {size.onnx_bytes / 1e9:.2f} GB "
            f"| {size.effective_bits:.2f} | {seconds / 60:.0f} | {peak(report) / 1e9:.1f} GB |"
        )
    cut = ", ".join(f"`{setting}`" for setting in SETTINGS)
    own = "; ".join(
        f"{name}: {', '.join(f'`{setting}`' for setting in settings)}"
        for name, settings in RECIPES.items()
        if settings and name in reports
    )
    here = next(iter(reports.values())).environment
    return [
        *rows,
        "",
        f"`{MODEL}`, {cut}"
        + (f"; {own}" if own else "")
        + ". *Minutes* and *peak memory*: all of the run, from "
        f"loading to the last file. {here.cpu}, {here.threads} thread{'s' if here.threads > 1 else ''}.",
    ]


def checks(reports: dict[str, Report]) -> list[Check]:
    """Every recipe within the memory."""
    return [
        Check(
            f"{name}: {MODEL} within {MEMORY / 1e9:.0f} GB of memory",
            f"{peak(report) / 1e9:.1f} GB",
            peak(report) <= MEMORY,
        )
        for name, report in reports.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=tuple(RECIPES), help="a recipe; may be repeated")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out" / "large", help="runs, resumed")
    parser.add_argument("--write", action="store_true", help="into README.md as well")
    args = parser.parse_args()
    reports = {name: run(name, args.out / name) for name in args.only or RECIPES}
    lines = table(reports)
    print("\n".join([*lines, "", *checks_table(checks(reports))]))
    if args.write:
        write_between(ROOT / "README.md", "large", lines)
    return int(not all(check.holds for check in checks(reports)))


if __name__ == "__main__":
    sys.exit(main())
