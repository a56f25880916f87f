"""What was measured: one ``result.json`` per row in OUT, gathered into one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from comparison.rows import Row

Entry = dict[str, Any]  # what a worker writes
_PARTS = ("entries", "missing")


class Results:
    """Entries by row, and why rows were not measured. A benchmark's own class names its ``rows``.

    Args:
        conditions: model, samples, steps, versions.
    """

    rows: ClassVar[Sequence[Any]]

    def __init__(
        self,
        conditions: dict[str, Any],
        entries: dict[str, Entry] | None = None,
        missing: dict[str, str] | None = None,
    ) -> None:
        self.conditions = conditions
        self.entries = entries or {}
        self.missing = missing or {}

    @classmethod
    def resume(cls, path: Path, conditions: dict[str, Any]) -> Results:
        """What ``path`` has of the table's rows under the same conditions; nothing of others."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls(conditions)
        if data.get("conditions") != conditions:
            return cls(conditions)
        names = {row.name for row in cls.rows}
        parts = ({name: data[part][name] for name in data[part] if name in names} for part in _PARTS)
        return cls(conditions, *parts)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"conditions": self.conditions, "entries": self.entries, "missing": self.missing}
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def add(self, row: Row, entry: Entry) -> None:
        self.entries[row.name] = entry
        self.missing.pop(row.name, None)

    def miss(self, row: Row, reason: str) -> None:
        """The row could not be measured."""
        self.missing[row.name] = reason
        self.entries.pop(row.name, None)

    def get(self, name: str) -> Entry | None:
        """None: not measured."""
        return self.entries.get(name)

    def measured(self, *kinds: str) -> Iterator[tuple[Any, Entry]]:
        """Rows of these kinds that were measured, in the order of the table."""
        for row in self.rows:
            if row.kind in kinds and row.name in self.entries:
                yield row, self.entries[row.name]


def fid(entry: Entry) -> float:
    """To the real images; of a model without, to the original's images."""
    compressed = entry["fidelity"]["compressed"]
    value = compressed["fid_to_original"] if compressed["fid"] is None else compressed["fid"]
    return float(value)


def sqnr(entry: Entry) -> float | None:
    """Output SQNR in dB; None: of the original, which has no error."""
    return entry["fidelity"]["paired"]["output_sqnr_db"]


def row_key(*parts: object) -> str:
    """Twelve digits: equal for equal rows under equal conditions."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
