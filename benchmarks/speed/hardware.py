"""The machine, and how much of it is ours while we measure."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

AUTOGROUP = Path("/proc/self/autogroup")
_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)


def describe(
    cpuinfo: Path = Path("/proc/cpuinfo"), topology: Path = Path("/sys/devices/system/cpu")
) -> dict[str, Any]:
    """CPU model, the instruction sets that matter here, cores, memory."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, separator, value = line.partition(":")
            if separator:
                fields.setdefault(key.strip().lower(), value.strip())
    flags = set(fields.get("flags", fields.get("features", "")).split())
    cache = topology / "cpu0/cache/index3/size"
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": len(one_per_core(topology)),
        "last_level_cache": cache.read_text().strip() if cache.is_file() else "unknown",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def one_per_core(topology: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """CPUs that this process may use, of each core the first."""
    allowed = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    chosen: dict[str, int] = {}
    for cpu in allowed:
        siblings = topology / f"cpu{cpu}/topology/thread_siblings_list"
        core = siblings.read_text().strip() if siblings.is_file() else str(cpu)
        chosen.setdefault(core, cpu)
    return list(chosen.values())


def available_bytes() -> int:
    """Memory that can still be taken without swapping."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def busy_seconds() -> float:
    """Seconds that all cores together were busy since the start; 0 where the system does not say."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def in_own_group(work: Callable[[str], int]) -> int:
    """Run ``work`` in a session of its own, its scheduler group weighted above others where that is allowed.

    Linux shares the cores between the groups of sessions ("autogroups"), not between processes: a busy
    process elsewhere takes half of them whatever its nice value. ``work`` gets a sentence that says what was
    done, and returns the exit status.
    """
    if not hasattr(os, "fork") or not AUTOGROUP.exists():
        return work("not in a scheduler group of its own: this system has no autogroups")
    child = os.fork()
    if child:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except KeyboardInterrupt:  # the terminal reaches us, not the other session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGTERM)
            os.waitpid(child, 0)
            return 130
    os.setsid()
    try:
        AUTOGROUP.write_text("-20")
        sentence = "in a scheduler group of its own with the highest weight"
    except OSError as error:
        sentence = f"in a scheduler group of its own, of ordinary weight ({error.strerror})"
    status = 1
    try:
        status = work(sentence)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        if isinstance(error.code, str):
            print(error.code, flush=True)
    except BaseException:
        traceback.print_exc()
    os._exit(status)
