"""One row in a process of its own, so that its peak memory is its own; measured once and kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison.results import Results, row_key
from comparison.rows import Row
from ditpress.errors import DitpressError
from ditpress.files import sha256_file, write_atomic

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "benchmarks"
RESULT = "result.json"
RUN = "run"  # the run folder of a row that a recipe makes


def row_folder(out: Path, row: Row, content: Any, conditions: dict[str, Any]) -> Path:
    """Where a row is made; ``content`` decides its figures."""
    return out / f"{row.name}-{row_key(content, conditions)}"


def measure(
    row: Any,
    original: Any,
    conditions: dict[str, Any],
    out: Path,
    results: Results,
    *,
    content: Callable[[Any], Any],
    work: Callable[[dict[str, Any]], str | None],
    needs: Callable[[Any], dict[str, Any]] = lambda row: {},
    fresh: bool = False,
) -> str | None:
    """Measure one row, unless it was; the reason where it cannot be.

    Args:
        row, original: of the table.
        content: what decides a row's figures.
        work: runs a job, which ends in ``result.json``; the reason where it fails.
        needs: what the job has beyond what all have.

    ``content`` and ``needs`` raise LookupError, or an error of ours, where the row cannot be measured.
    """
    try:
        folder = row_folder(out, row, content(row), conditions)
    except (LookupError, DitpressError) as error:
        return _missed(results, row, str(error))
    done = folder / RESULT
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if not done.is_file():
        print(f"{row.name} ...", flush=True)
        job = {
            "row": row.to_data(),
            "conditions": conditions,
            "folder": str(folder),
            "original": str(row_folder(out, original, content(original), conditions)),
            "code": code_version(),
        }
        try:
            job |= needs(row)
        except LookupError as error:
            return _missed(results, row, str(error))
        reason = work(job)
        if reason is not None:
            return _missed(results, row, reason)
    results.add(row, json.loads(done.read_text(encoding="utf-8")))
    return None


def _missed(results: Results, row: Row, reason: str) -> str:
    results.miss(row, reason)
    return reason


def run_worker(module: str, job: dict[str, Any]) -> str | None:
    """Run ``python -m module job``; the last it said where it failed."""
    from speed.processes import reason

    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    process = subprocess.run(
        [sys.executable, "-P", "-m", module, json.dumps(job)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    return None if process.returncode == 0 else reason(process.stderr, process.returncode)


def finish(job: dict[str, Any], entry: dict[str, Any]) -> None:
    """The end of a worker: what it measured becomes ``result.json``."""
    result = entry | {"code": job["code"]}
    write_atomic(Path(job["folder"]) / RESULT, (json.dumps(result, indent=1) + "\n").encode())


def code_version() -> str:
    """Twelve digits of a hash over everything in the package that can change a figure."""
    import ditpress

    root = Path(ditpress.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".yaml", ".so"))
    return row_key({path.relative_to(root).as_posix(): sha256_file(path) for path in files})
