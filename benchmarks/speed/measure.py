"""Contestants in turn, round by round, in groups that fit into memory together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from speed.artifacts import Artifacts
from speed.contestants import Contestant, contestants_of, names_of
from speed.hardware import available_bytes, busy_seconds, one_per_core
from speed.peaks import Peaks
from speed.processes import Failed, WorkerProcess
from speed.results import Entry
from speed.running import Running
from speed.workloads import Workload, split_case

PAUSE = 0.005  # between two turns: pools that spin a little after their work go to sleep in it
MEMORY_RESERVE = 1_500_000_000
INTERPRETER_BYTES = 1_000_000_000
TRIAL_RUNS = 3
ONE_THREAD = "@1"  # suffix of the baseline on one thread


class Measurement:
    """One workload on one number of threads.

    Args:
        workload: what.
        threads: of every contestant.
        rounds: at least this many turns of each.
        artifacts: the files.
        peaks: measured between the rounds.
        library: path of our ONNX Runtime library, empty where it was not built.
        picked: variants that won an earlier trial, by name; filled here.
        earlier: what a measurement of the same has kept that was stopped: its contestants stay as they are.
    """

    def __init__(
        self,
        workload: Workload,
        threads: int,
        rounds: int,
        artifacts: Artifacts,
        peaks: Peaks,
        library: str,
        picked: dict[str, Contestant],
        earlier: Entry | None = None,
    ) -> None:
        self.workload, self.threads, self.rounds = workload, threads, rounds
        self.artifacts, self.peaks, self.library, self.picked = artifacts, peaks, library, picked
        self.earlier = earlier or {"contestants": {}, "trials": {}, "others": [], "peaks": {}}
        self.records: dict[str, dict[str, Any]] = dict(self.earlier["contestants"])
        self.not_run: dict[str, dict[str, str]] = {}
        self.trials: dict[str, dict[str, float]] = dict(self.earlier["trials"])
        self._others: list[float] = list(self.earlier["others"])  # cores that were busy for somebody else

    def run(self, keep: Callable[[Entry], None]) -> None:
        """Measure all. ``keep`` gets the entry of results.json after every group, as far as it is."""
        self.artifacts.path("fp32")  # everyone's inputs
        named = names_of(contestants_of(self.workload.contestants, self.workload.is_linear))
        first = named.pop(self.workload.baseline)[0]
        # No contestant is loaded yet: the tools get all the memory.
        if not self._prepared([first]):
            raise Failed(f"{first.label}: {self.not_run[first.name]['reason']}")
        left = [variants for name, variants in named.items() if name not in self.records]
        waiting = [ready for variants in left if (ready := self._prepared(variants))]
        baseline = self._start(first, self.threads)
        always = [baseline]
        try:
            if self.threads > 1:
                alone = replace(first, name=first.name + ONE_THREAD, label=f"{first.label}, 1 thread")
                always.append(self._start(alone, 1))
            while True:
                group = self._fill(waiting)
                try:
                    print(f"  {', '.join(one.name for one in (*always, *group))}", flush=True)
                    self._rounds(baseline, [*always[1:], *group])
                finally:
                    for one in group:
                        one.process.close()
                ran = (one for one in (*always, *group) if one.name not in self.not_run)
                self.records |= {one.name: one.record() for one in ran}
                keep(self._entry(baseline.name, waiting))
                if not waiting:
                    return
        finally:
            for one in always:
                one.process.close()

    def _entry(self, baseline: str, waiting: Sequence[Sequence[Contestant]]) -> Entry:
        earlier = self.earlier["peaks"]
        return {
            "title": self.workload.title,
            "threads": self.threads,
            "when": time.strftime("%Y-%m-%d"),
            "baseline": baseline,
            "contestants": dict(self.records),
            "waiting": [variants[0].label for variants in waiting],
            "not_run": dict(self.not_run),
            "trials": dict(self.trials),
            "peaks": {
                "kind": self.peaks.kind,
                "reason": self.peaks.reason,
                "int8": _best(earlier.get("int8", {}), self.peaks.int8),
                "read": _best(earlier.get("read", {}), self.peaks.read),
            },
            "others": list(self._others),
        }

    def _prepared(self, variants: Sequence[Contestant]) -> list[Contestant]:
        """Those whose files are there or could be made; none is left out without a word."""
        ready, why = [], ""
        for contestant in variants:
            try:
                if contestant.library and not self.library:
                    raise Failed("ditpress was installed without its C++ kernels: install a C++17 compiler")
                if contestant.artifact is not None:
                    self.artifacts.path(contestant.artifact)
                ready.append(contestant)
            except Failed as error:
                why = str(error)
        if not ready:
            self._gave_up(variants[0], why)
        return ready

    def _gave_up(self, contestant: Contestant, why: str) -> None:
        print(f"  {contestant.label} not run: {why}", flush=True)
        self.not_run[contestant.name] = {"label": contestant.label, "reason": why}

    def _fill(self, waiting: list[list[Contestant]]) -> list[Running]:
        """Start contestants from the front of ``waiting`` while there is memory; at least one leaves it."""
        group: list[Running] = []
        left = available_bytes() - MEMORY_RESERVE  # without what those of the group will hold
        while waiting:
            variants = waiting[0]
            need, free = max(map(self._need, variants)), min(available_bytes() - MEMORY_RESERVE, left)
            if need > free:
                if group:
                    break
                self._gave_up(variants[0], f"needs about {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
                waiting.pop(0)
                continue
            waiting.pop(0)
            try:
                contestant = self._fastest(variants)
                group.append(self._start(contestant, self.threads))
                left -= self._held(contestant)
            except Failed as error:
                self._gave_up(variants[0], str(error))
        return group

    def _need(self, contestant: Contestant) -> int:
        """Memory that loading may take: engines hold the file, the model and their own layout of it."""
        size = self.artifacts.loaded_bytes(contestant.artifact or "fp32")
        return 3 * size + INTERPRETER_BYTES

    def _held(self, contestant: Contestant) -> int:
        """Memory that a contestant holds while it runs: some take it with the first step only."""
        return 2 * self.artifacts.loaded_bytes(contestant.artifact or "fp32") + INTERPRETER_BYTES // 2

    def _fastest(self, variants: Sequence[Contestant]) -> Contestant:
        """The variant to take part: the one that is fastest here in a few runs."""
        name = variants[0].name
        if len(variants) == 1:
            return variants[0]
        if name in self.picked:
            return self.picked[name]
        times: dict[str, float] = {}
        why = ""
        for variant in variants:
            try:
                trial = self._start(variant, self.threads)
            except Failed as error:
                why = str(error)
                continue
            try:
                answer = trial.process.run(self.workload.cases[0], TRIAL_RUNS)
                times[variant.variant] = min(answer["seconds"])
            except Failed as error:
                why = str(error)
            finally:
                trial.process.close()
        if not times:
            raise Failed(why)
        self.trials[name] = times
        best = min(times, key=lambda variant: times[variant])
        self.picked[name] = next(variant for variant in variants if variant.variant == best)
        return self.picked[name]

    def _start(self, contestant: Contestant, threads: int) -> Running:
        artifact = contestant.artifact
        job = {
            "engine": contestant.engine,
            "workload": self.workload.source,
            "cases": self.workload.cases,
            "artifact": str(self.artifacts.path(artifact)) if artifact else "",
            "inputs": str(self.artifacts.inputs),
            "threads": threads,
            "cpus": one_per_core()[:threads],
            "quick": self.artifacts.quick,
            "library": self.library if contestant.library else "",
            "model": contestant.model,
            "options": contestant.options,
        }
        size = self.artifacts.bytes(artifact) if artifact else None
        return Running(contestant, WorkerProcess(job), size)

    def _rounds(self, baseline: Running, others: list[Running]) -> None:
        """All rounds of one group."""
        alive = [baseline, *others]
        for index in range(self.rounds):
            for case in self.workload.cases:
                turn = alive[index % len(alive) :] + alive[: index % len(alive)]
                measured = {}
                for one in turn:
                    try:
                        measured[one.name] = self._turn(one, case)
                    except Failed as error:
                        if one is baseline:
                            raise
                        self._gave_up(one.contestant, str(error))
                        alive.remove(one)
                for one in alive:
                    one.seconds.setdefault(case, []).append(measured[one.name])
                    one.baseline.setdefault(case, []).append(measured[baseline.name])
            self.peaks.burst()

    def _turn(self, one: Running, case: str) -> float:
        """Seconds of one turn, of linears for one copy; and who else was at work meanwhile."""
        known = case in one.turns
        busy, began = busy_seconds(), time.perf_counter()
        seconds = one.turn(case, self.workload.budget)
        if known:
            wall = time.perf_counter() - began
            self._others.append(max(0.0, (busy_seconds() - busy) / wall - one.cpu[-1]))
        time.sleep(PAUSE)
        return seconds / self.artifacts.copies(split_case(case)[0])


def _best(earlier: Mapping[str, float], rates: Mapping[int, float]) -> dict[str, float]:
    """The higher rate of two measurements, by number of threads."""
    found = {str(count): rate for count, rate in rates.items()}
    return {count: max(found.get(count, 0.0), earlier.get(count, 0.0)) for count in {**earlier, **found}}
