"""The peaks of the machine, measured between the contestants' turns."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from speed.processes import Failed, Lines

SOURCE = Path(__file__).with_name("peaks.cc")
BURST_MS = 150


class Peaks:
    """Best of all bursts so far.

    Args:
        folder: where the compiled program is kept.
        threads: numbers of threads to measure with.

    Attributes:
        kind: "avx512_vnni", "avx_vnni" or "none".
        int8: multiplications and additions a second, by number of threads.
        read: bytes a second, by number of threads.
        reason: why nothing is measured; empty when all is.
    """

    def __init__(self, folder: Path, threads: list[int]) -> None:
        self.threads = sorted(set(threads))
        self.kind, self.reason = "none", ""
        self.int8: dict[int, float] = {}
        self.read: dict[int, float] = {}
        self._process: Lines | None = None
        try:
            self._process = Lines((str(build(folder)),))
            self.kind = self._process.ask("kind")
        except Failed as error:
            self.reason = str(error)
        if not self.reason and self.kind == "none":
            self.reason = "this CPU has no VNNI: the int8 peak is not measured"

    def burst(self) -> None:
        """Measure once with each number of threads."""
        if self._process is None:
            return
        for count in self.threads:
            for what, best in (("int8", self.int8), ("read", self.read)):
                rate = float(self._process.ask(f"{what} {count} {BURST_MS}"))
                if rate > 0:
                    best[count] = max(best.get(count, 0.0), rate)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()


def build(folder: Path) -> Path:
    """Compile peaks.cc with the system's compiler, once for each version of the source.

    Raises:
        Failed: there is no compiler, or it does not take the source.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = folder / f"peaks-{digest}"
    if program.is_file():
        return program
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        raise Failed("no C++ compiler: the peaks are not measured")
    folder.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-O2", "-std=c++17", "-pthread", str(SOURCE), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        error = next((line for line in result.stderr.splitlines() if "error" in line.lower()), "failed")
        raise Failed(f"{Path(compiler).name}: {error}; the peaks are not measured")
    return program
