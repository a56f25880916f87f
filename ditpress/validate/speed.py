"""How long one denoising step takes, original against compressed, and on what hardware."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditpress.errors import InputError
from ditpress.progress import track

ROUNDS, WARMUP = 20, 3
SECONDS, FEWEST, MOST = 2.0, 7, 500  # rounds are repeated for this long, but so often at least and at most
CPUINFO = Path("/proc/cpuinfo")
# What decides the speed of integer and float kernels, with the names people know them by.
_FLAGS = {
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-INT8",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "asimddp": "NEON dot product",
}


@dataclass(frozen=True)
class Timings:
    """Seconds per run of several functions, measured in turn.

    Attributes:
        seconds: for each name, one entry per round; entry i of all names ran in the same round.
    """

    seconds: dict[str, tuple[float, ...]]

    def median_ms(self, name: str) -> float:
        """Median over the rounds in milliseconds."""
        return 1e3 * statistics.median(self.seconds[name])


def measure_paired(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Run the functions in turn, ``rounds`` times, after ``warmup`` rounds that do not count.

    The order turns by one each round, so that none always runs on the caches another has left.

    Raises:
        InputError: no functions, or fewer than one round.
    """
    if not functions or rounds < 1 or warmup < 0:
        raise InputError(
            f"cannot measure {len(functions)} functions in {rounds} rounds: expected at least one of each"
        )
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in track(range(warmup + rounds), "measuring speed"):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            began = clock()
            functions[name]()
            elapsed = clock() - began
            if index >= warmup:
                seconds[name].append(elapsed)
    return Timings({name: tuple(values) for name, values in seconds.items()})


def bench(
    functions: Mapping[str, Callable[[], Any]],
    *,
    threads: int,
    rounds: int | None = None,
    warmup: int = WARMUP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The ``speed`` part of the report.

    Args:
        functions: "original" and "compressed", each one denoising step on the same inputs.
        threads: how many each of them uses (recorded, not set here).
        rounds, warmup, clock: as in :func:`measure_paired`; rounds None: as many as ``SECONDS`` hold, within
            ``FEWEST`` and ``MOST``.

    Returns:
        ``hardware``, ``threads``, ``original_ms``, ``compressed_ms`` (medians over the rounds) and
        ``speedup``, their ratio.
    """
    if set(functions) != {"original", "compressed"}:
        raise InputError(
            f"bench of {', '.join(functions) or 'nothing'}: expected 'original' and 'compressed'"
        )
    if rounds is None:
        trial = measure_paired(functions, 1, warmup, clock)
        once = sum(seconds[0] for seconds in trial.seconds.values())
        rounds, warmup = max(FEWEST, min(MOST, math.ceil(SECONDS / once))), 0
    timings = measure_paired(functions, rounds, warmup, clock)
    original_ms, compressed_ms = timings.median_ms("original"), timings.median_ms("compressed")
    return {
        "hardware": hardware(),
        "threads": threads,
        "original_ms": original_ms,
        "compressed_ms": compressed_ms,
        "speedup": original_ms / compressed_ms,
    }


def hardware(cpuinfo: Path = CPUINFO) -> str:
    """CPU model, instruction sets that matter, cores this process may use, and the GPU if there is one."""
    fields: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, separator, value = line.partition(":")
            if separator:
                fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass  # not Linux: platform still knows a little
    model = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", fields.get("features", "")).split())
    known = [label for flag, label in _FLAGS.items() if flag in flags]
    parts = [model, *([" ".join(known)] if known else []), f"{_cores()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _cores() -> int:
    """Cores this process may run on: fewer than the machine has in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
