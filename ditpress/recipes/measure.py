"""Wall time and peak memory of a step."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ditpress.memory import release


@dataclass
class Measure:
    """``seconds`` of wall time; ``peak_rss_bytes``: the process's largest resident memory meanwhile."""

    seconds: float = 0.0
    peak_rss_bytes: int = 0


@contextlib.contextmanager
def measure(into: Measure) -> Iterator[None]:
    """Fill ``into`` when the block ends."""
    release()  # what the step before has freed is not this one's
    _reset_peak()
    started = time.perf_counter()
    try:
        yield
    finally:
        into.seconds = time.perf_counter() - started
        into.peak_rss_bytes = peak_rss_bytes()


def peak_rss_bytes() -> int:
    """Largest resident memory since the last :func:`measure` began; not on Linux: of the whole process."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024  # macOS counts bytes, others kilobytes


def _reset_peak() -> None:
    """Start the peak anew (Linux: 5 in clear_refs); where that is not allowed the old one stands."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
