"""Contestants in groups, kept after each: what was stopped goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import speed.measure
from speed.contestants import Contestant
from speed.measure import Measurement
from speed.processes import Failed
from speed.results import Results
from speed.tables import models_table
from speed.workloads import Workload

WORKLOAD = Workload("one", "One model", budget=0.01)
NAMES = ("ours-w4a8", "slow", "slower", "broken")
ONE_GROUP = {"fp32": 1, "slow": 1, "slower": 1, "broken": 1}  # bytes of the files: all fit


class Process:
    """A contestant that needs as many milliseconds as its engine's name says."""

    loaded_artifacts: ClassVar[list[str]] = []

    def __init__(self, job: dict[str, Any]) -> None:
        self.artifact = job["artifact"]
        self.loaded_artifacts.append(self.artifact)
        self.seconds = float(job["engine"]) / 1e3 / job["threads"]
        self.loaded = {"resident": 5, "version": "1.0", "seconds": 0.1}

    def run(self, case: str, runs: int) -> dict[str, Any]:
        if self.seconds > 1:
            raise Failed("killed by signal 9")
        return {"seconds": [self.seconds] * runs, "cpu": 1.0, "resident": 7}

    def close(self) -> None:
        self.loaded_artifacts.remove(self.artifact)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a measurement; ``sizes`` decide who fits into memory together."""
    times = dict(zip(NAMES, ("10", "20", "40", "99999"), strict=True))
    contestants = tuple(
        Contestant(name, name.upper(), engine, name if name in ONE_GROUP else "fp32", ours=name == NAMES[0])
        for name, engine in times.items()
    )
    monkeypatch.setattr(speed.measure, "contestants_of", lambda kind, linear: contestants)
    monkeypatch.setattr(speed.measure, "WorkerProcess", Process)
    monkeypatch.setattr(speed.measure, "PAUSE", 0.0)

    def make(
        sizes: dict[str, int], earlier: dict[str, Any] | None = None, rate: float = 1e11, held: int = 3
    ) -> Measurement:
        def available() -> int:
            return 10_000_000_000 - held * sum(map(sizes.__getitem__, Process.loaded_artifacts))

        monkeypatch.setattr(speed.measure, "available_bytes", available)
        artifacts = SimpleNamespace(
            path=lambda name: Path(name),
            bytes=sizes.get,
            loaded_bytes=sizes.__getitem__,
            copies=lambda model: 1,
            inputs=Path("inputs"),
            quick=True,
        )
        peaks = SimpleNamespace(kind="none", reason="", int8={1: rate}, read={}, burst=lambda: None)
        return Measurement(WORKLOAD, 2, 3, artifacts, peaks, "", {}, earlier)  # type: ignore[arg-type]

    return make


def test_all_in_one_group(rig: Any) -> None:
    kept: list[dict[str, Any]] = []
    rig(ONE_GROUP).run(kept.append)
    (entry,) = kept
    assert set(entry["contestants"]) == {"ours-w4a8", "ours-w4a8@1", "slow", "slower"}
    assert entry["waiting"] == []
    assert entry["not_run"] == {"broken": {"label": "BROKEN", "reason": "killed by signal 9"}}
    assert entry["contestants"]["slower"]["cases"] == {
        "step": {"seconds": [0.02] * 3, "baseline": [0.005] * 3}
    }
    assert entry["contestants"]["ours-w4a8@1"]["cases"]["step"]["seconds"] == [0.01] * 3
    assert "| SLOWER | 20.0 (20.0–20.0) | 0.25 (0.25–0.25) | 0 MB |" in models_table(entry)
    assert Process.loaded_artifacts == []


def test_memory_that_is_taken_with_the_first_step_counts(rig: Any) -> None:
    kept: list[dict[str, Any]] = []
    rig({**ONE_GROUP, "slow": 2_000_000_000, "slower": 2_000_000_000}, held=0).run(kept.append)
    assert [entry["waiting"] for entry in kept] == [["SLOWER", "BROKEN"], []]


def test_what_was_stopped_goes_on_after_the_last_group(rig: Any, tmp_path: Path) -> None:
    large = {**ONE_GROUP, "slow": 2_000_000_000, "slower": 2_000_000_000}  # one at a time
    results, path = Results({}), tmp_path / "results.json"

    class Stopped(Exception):
        pass

    def keep(entry: dict[str, Any]) -> None:
        results.add("one", 2, entry)
        results.save(path)
        if entry["waiting"]:
            raise Stopped

    with pytest.raises(Stopped):
        rig(large, rate=3e11).run(keep)
    first = results.stopped("one", 2)
    assert first is not None
    assert first["waiting"] == ["SLOWER", "BROKEN"]
    assert "Not measured yet: SLOWER, BROKEN." in models_table(first)
    assert set(first["contestants"]) == {"ours-w4a8", "ours-w4a8@1", "slow"}
    marked = first["contestants"]["slow"] | {"load_seconds": 123.0}  # of the first run, not measured again
    first["contestants"]["slow"] = marked
    rig(large, first).run(keep)
    assert results.stopped("one", 2) is None
    entry = results.entry("one", 2)
    assert entry is not None
    assert entry["waiting"] == []
    assert entry["contestants"]["slow"] == marked
    assert entry["contestants"]["slower"]["cases"]["step"]["baseline"] == [0.005] * 3
    assert set(entry["not_run"]) == {"broken"}
    assert entry["peaks"]["int8"] == {"1": 3e11}  # the best of both
    assert len(entry["others"]) > len(first["others"])
