"""One contestant: ``python -m speed.worker``, driven by lines of JSON.

The first line is the job (see ``engines.Engine``, and "engine", "cpus", "cases"). After each line the worker
answers with one:

    job                          {"resident": bytes that loading added, "version": ..., "seconds": to load}
    {"case": c, "runs": n}       {"seconds": [n], "cpu": cores that were busy for us, on average}

An answer {"error": text} says why it cannot; the worker then goes on. It ends with its input.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speed.engines import ENGINES


def resident_bytes(status: str | None = None) -> int:
    """Memory of this process that is in use: anonymous, and pages of files it maps."""
    if status is None:
        path = Path("/proc/self/status")
        status = path.read_text(encoding="utf-8") if path.is_file() else ""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(1024 * int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssFile"))


def timed(step: Callable[[], Any], runs: int) -> dict[str, Any]:
    """Seconds of each of ``runs`` calls after one that does not count, which brings the caches back."""
    step()
    seconds = []
    busy, began = time.process_time(), time.perf_counter()
    for _ in range(runs):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    wall = time.perf_counter() - began
    return {"seconds": seconds, "cpu": (time.process_time() - busy) / wall}


class Worker:
    """Answers the lines."""

    def __init__(self, job: dict[str, Any]) -> None:
        if job["cpus"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, job["cpus"])
        began = time.perf_counter()
        self._engine = ENGINES[job["engine"]](job)
        before = resident_bytes()  # the interpreter with the engine imported
        for case in job["cases"]:
            self._engine.load(case)
        self._engine.loaded()
        self.loaded = {
            "resident": resident_bytes() - before,
            "version": importlib.metadata.version(job["engine"]),
            "seconds": time.perf_counter() - began,
        }
        self._before = before
        self._steps: dict[str, Callable[[], Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        case = request["case"]
        if case not in self._steps:
            self._steps[case] = self._engine.step(case)
        result = timed(self._steps[case], request["runs"])
        return {**result, "resident": resident_bytes() - self._before}


def main() -> None:
    # Tools print what they like to standard output: ours goes to a descriptor of its own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        try:
            if worker is None:
                worker = Worker(json.loads(line))
                answer = worker.loaded
            else:
                answer = worker.answer(json.loads(line))
        except Exception as error:  # whatever a library raises is this contestant's result
            reason = next((text for text in str(error).splitlines() if text.strip()), "no message")
            answer = {"error": f"{type(error).__name__}: {reason.strip()}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
