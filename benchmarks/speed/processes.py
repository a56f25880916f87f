"""The processes of a run: contestants and the peaks, each asked by a line and answering by one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

PACKAGES = Path(__file__).resolve().parent.parent
LOAD_SECONDS, RUN_SECONDS = 900.0, 600.0


class Failed(Exception):
    """A contestant or a preparation that could not be run; the text is the reason in the table."""


def environment(threads: int, cpus: Sequence[int] = ()) -> dict[str, str]:
    """For a worker: threads of every pool, one on each of ``cpus``, and pools that wait without computing.

    GNU OpenMP would go on spinning for milliseconds after a parallel region, and does so for as long as told
    here: long enough to find the next layer of its own model, gone when the next contestant starts.
    """
    count = str(threads)
    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    places = {"OMP_PROC_BIND": "true", "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus)} if cpus else {}
    return (
        os.environ
        | places
        | {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "GOMP_SPINCOUNT": "20000",
            "KMP_BLOCKTIME": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
    )


class Lines:
    """A process that answers each line with a line. Used in a ``with``, it is gone afterwards."""

    def __init__(self, command: Sequence[str], threads: int = 1, cpus: Sequence[int] = ()) -> None:
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment(threads, cpus),
        )

    def ask(self, line: str, timeout: float = RUN_SECONDS) -> str:
        """Raises Failed when the process ends or does not answer in ``timeout`` seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            raise Failed(self._last_words()) from None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self.close()
            raise Failed(f"no answer in {timeout:.0f} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise Failed(self._last_words())
        return answer.strip()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # a line that the dead process never read
                    stream.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._stderr.seek(0)
        return reason(self._stderr.read(), status)


class WorkerProcess(Lines):
    """A contestant.

    Args:
        job: as in ``worker``; loading begins at once.

    Attributes:
        loaded: the worker's first answer.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__((sys.executable, "-P", "-m", "speed.worker"), job["threads"], job["cpus"])
        try:
            self.loaded = self._answer(job, LOAD_SECONDS)
        except BaseException:
            self.close()
            raise

    def run(self, case: str, runs: int) -> dict[str, Any]:
        """Seconds of ``runs`` runs and what else the worker tells. Raises Failed."""
        return self._answer({"case": case, "runs": runs}, RUN_SECONDS)

    def _answer(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.ask(json.dumps(request), timeout))
        if "error" in answer:
            raise Failed(answer["error"])
        return answer


def reason(stderr: str, status: int) -> str:
    """One line on why a process ended: the last it said, else its status."""
    if status < 0:
        return f"killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {status}"
    return re.sub(r"^[\w.]+\.(?=\w+(Error|Exception)\b)", "", last)  # without the module of the exception
