"""A contestant that is loaded: its turns, and what they measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from speed.contestants import Contestant
from speed.processes import WorkerProcess
from speed.rounds import runs_for


@dataclass
class Running:
    """A contestant with its process, and what it has measured."""

    contestant: Contestant
    process: WorkerProcess
    size: int | None
    turns: dict[str, int] = field(default_factory=dict)  # runs in one turn of a case
    seconds: dict[str, list[float]] = field(default_factory=dict)
    baseline: dict[str, list[float]] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    resident: int = 0

    @property
    def name(self) -> str:
        return self.contestant.name

    def turn(self, case: str, budget: float) -> float:
        """The median of one turn in seconds."""
        if case not in self.turns:
            once = self.process.run(case, 1)["seconds"][0]
            self.turns[case] = runs_for(budget, once)
        answer = self.process.run(case, self.turns[case])
        self.cpu.append(answer["cpu"])
        self.resident = answer["resident"]
        return statistics.median(answer["seconds"])

    def record(self) -> dict[str, Any]:
        contestant, loaded = self.contestant, self.process.loaded
        return {
            "label": contestant.label,
            "ours": contestant.ours,
            "engine": contestant.engine,
            "version": loaded["version"],
            "variant": contestant.variant,
            "bytes": self.size,
            "resident_loaded": loaded["resident"],
            "resident_running": self.resident,
            "load_seconds": loaded["seconds"],
            "cpu": statistics.median(self.cpu),
            "cases": {
                case: {"seconds": seconds, "baseline": self.baseline[case]}
                for case, seconds in self.seconds.items()
            },
        }
