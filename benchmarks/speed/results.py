"""results.json: what was measured, kept group by group of contestants, and the figures read off it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ditpress.files import write_atomic
from speed.rounds import Spread, ratio, spread

_SAME = (
    "hardware",
    "library",
    "isa",
    "versions",
    "quick",
)  # entries measured under others are no part of one table
FORM = 2  # of the file: another one is not read
Entry = dict[str, Any]  # one workload on one number of threads, as ``measure`` returns it


class Results:
    """All entries measured on one machine with one set of versions.

    Args:
        conditions: hardware, library, versions, scheduling.
    """

    def __init__(
        self, conditions: dict[str, Any], workloads: dict[str, dict[str, Entry]] | None = None
    ) -> None:
        self.conditions = conditions
        self.workloads = workloads or {}

    @classmethod
    def resume(cls, path: Path, conditions: dict[str, Any]) -> Results:
        """What ``path`` has of the same machine, kernels, versions and form; nothing of others."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls(conditions)
        same = data.get("form") == FORM and all(
            data["conditions"].get(key) == conditions[key] for key in _SAME
        )
        return cls(conditions, data["workloads"] if same else None)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"form": FORM, "conditions": self.conditions, "workloads": self.workloads}
        write_atomic(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())

    def add(self, workload: str, threads: int, entry: Entry) -> None:
        self.workloads.setdefault(workload, {})[str(threads)] = entry

    def entry(self, workload: str, threads: int) -> Entry | None:
        """None: not measured."""
        return self.workloads.get(workload, {}).get(str(threads))

    def stopped(self, workload: str, threads: int) -> Entry | None:
        """The entry of a measurement that was stopped between two groups of contestants."""
        entry = self.entry(workload, threads)
        return entry if entry is not None and entry["waiting"] else None

    def entries(self) -> Iterator[tuple[str, int, Entry]]:
        """Workload, threads and entry of all, in the order they were measured."""
        for workload, by_threads in self.workloads.items():
            for threads, entry in by_threads.items():
                yield workload, int(threads), entry

    def peak(self, threads: int) -> float | None:
        """The int8 peak: the best of all bursts in all entries."""
        return max(
            (rate for _, _, entry in self.entries() if (rate := entry["peaks"]["int8"].get(str(threads)))),
            default=None,
        )

    def bandwidth(self, threads: int) -> float | None:
        """Bytes read a second: the best of all bursts in all entries."""
        return max(
            (rate for _, _, entry in self.entries() if (rate := entry["peaks"]["read"].get(str(threads)))),
            default=None,
        )


def seconds(entry: Entry, name: str, case: str = "step") -> Spread | None:
    """The time of a contestant; None: it did not run."""
    timed = _timed(entry, name, case)
    return None if timed is None else spread(timed["seconds"])


def ours_to(entry: Entry, name: str, case: str = "step") -> Spread | None:
    """Our baseline's time over a contestant's, round by round."""
    timed = _timed(entry, name, case)
    return None if timed is None else ratio(timed["baseline"], timed["seconds"])


def to_ours(entry: Entry, name: str, case: str = "step") -> Spread | None:
    """A contestant's time over our baseline's, round by round."""
    timed = _timed(entry, name, case)
    return None if timed is None else ratio(timed["seconds"], timed["baseline"])


def peers(entry: Entry) -> list[str]:
    """Names of the contestants that are not ours."""
    return [name for name, record in entry["contestants"].items() if not record["ours"]]


def _timed(entry: Entry, name: str, case: str) -> dict[str, list[float]] | None:
    record = entry["contestants"].get(name)
    return None if record is None else record["cases"].get(case)
