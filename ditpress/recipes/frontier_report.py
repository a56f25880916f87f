"""``ditpress report OUT1 OUT2 …``: the reports of several finished runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditpress.errors import InputError
from ditpress.files import write_atomic
from ditpress.recipes.steps import SAMPLES
from ditpress.validate.frontier_page import COUNT, render_frontier
from ditpress.validate.report import load_report
from ditpress.validate.run_plots import ShownRun


def write_frontier(outs: Sequence[str | Path], page: str | Path) -> Path:
    """Write the page of the runs ``outs`` to the .html file ``page``.

    Raises:
        InputError: a folder without a finished run, runs that cannot be compared, or no .html name.
    """
    path = Path(page)
    if path.suffix.lower() != ".html":
        raise InputError(f"{path}: expected a file name that ends in .html")
    write_atomic(path, render_frontier([shown_run(Path(out)) for out in outs]).encode())
    return path


def shown_run(out: Path) -> ShownRun:
    """What the page shows of one run; pictures where stages/ still has them."""
    if not (out / "report.json").is_file():
        raise InputError(f"{out}: no finished run of ditpress (no report.json); give the OUT of a run")
    report = load_report(out / "report.json")
    return ShownRun(out.resolve().name, report, _images(out, "original"), _images(out, "validation"))


def _images(out: Path, step: str) -> Tensor | None:
    """The first images that the newest step of that name drew, or None."""
    found = sorted(out.glob(f"stages/[0-9]*-{step}-*/{SAMPLES}"), key=lambda file: file.stat().st_mtime)
    if not found:
        return None
    try:
        with safe_open(found[-1], "pt") as file:
            return file.get_slice("images")[:COUNT]
    except (OSError, SafetensorError, KeyError):
        return None
