"""The run folder OUT: what lies in it, whose it is, and how parts of it appear.

```
recipe.yaml  model/  onnx/  stages/  report.json  report.html  samples.png  (frontier.json, .png)
.ditpress.json   whose run it is        .lock   held while a run is under way        .part-*   unfinished work
```
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ditpress.errors import InputError
from ditpress.files import atomic_folder, disk_errors, free_bytes, write_atomic

MARKER = ".ditpress.json"
LOCK = ".lock"
PART = ".part-"
OURS = (
    *("recipe.yaml", "model", "onnx", "stages", "report.json", "report.html", "samples.png"),
    *("frontier.json", "frontier.png", MARKER),  # the marker last
)
SCHEMA = 1


class RunFolder:
    """An OUT folder that belongs to one model and one compression; made by :func:`open_run`."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = identity

    def write(self, name: str, data: bytes) -> Path:
        """Write the file ``name`` atomically."""
        target = self.path / name
        write_atomic(target, data)
        return target

    def publish(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Make the folder ``name`` by ``fill(temporary folder)``; it appears when it is complete."""
        target = self.path / name
        with atomic_folder(target, scratch=self.path / f"{PART}{name.replace('/', '-')}") as content:
            fill(content)
        return target


def require_space(path: Path, needed: int) -> None:
    """Raise InputError where the disk of ``path`` has no room for what is still to be written.

    Args:
        path: OUT, existing or not; what lies in it already counts as written.
        needed: bytes that the whole run writes.
    """
    written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    free = free_bytes(path)
    if free < needed - written:
        raise InputError(
            f"{path}: {free / 1e9:.2f} GB free on the disk, this run writes up to "
            f"{(needed - written) / 1e9:.2f} GB; free some space or give another -o"
        )


def read_marker(path: Path) -> dict[str, Any] | None:
    """The identity written in a run folder, or None where ``path`` is no run folder of ours."""
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("schema") == SCHEMA else None


def check_out(path: Path, identity: dict[str, Any], fresh: bool) -> None:
    """Raise InputError where ``path`` must not be written to by a run of ``identity``; changes nothing.

    Raises:
        InputError: ``path`` is a file, a folder with other people's files, or another run and not ``fresh``.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give a folder with -o")
    foreign = [entry.name for entry in path.iterdir() if entry.name != LOCK] if path.is_dir() else []
    if not foreign:
        return
    marker = read_marker(path)
    if marker is None:
        if (path / MARKER).exists():
            raise InputError(
                f"{path / MARKER} is damaged or of another version; move {path} away or give another -o"
            )
        raise InputError(
            f"{path} holds files that are not of a ditpress run ({min(foreign)}); give another -o"
        )
    if not fresh and marker["key"] != identity["key"]:
        raise InputError(
            f"{path} holds a run of {marker['model']} with recipe {marker['recipe']} (settings "
            f"{marker['key'][:8]}, asked for {identity['model']} with {identity['recipe']}, "
            f"{identity['key'][:8]}); give another -o, or --fresh to replace it"
        )


@contextlib.contextmanager
def open_run(
    path: Path, identity: dict[str, Any], *, fresh: bool = False, needed: int = 0
) -> Iterator[RunFolder]:
    """Take the run folder for one run, alone.

    Args:
        path: OUT; made where it does not exist.
        identity: ``key`` (content hash of model and compression), ``model`` and ``recipe`` (for people).
        fresh: first delete the files of an earlier run; never anything that is not a run's own.
        needed: bytes that the whole run writes.

    Raises:
        InputError: see :func:`check_out` and :func:`require_space`; also where another run holds the folder.
    """
    check_out(path, identity, fresh)
    require_space(path, needed)
    with disk_errors("the run folder", path):
        path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        check_out(path, identity, fresh)  # again: another run may have finished in between
        for leftover in path.glob(f"{PART}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if fresh:
            _clear(path)
        run = RunFolder(path, identity)
        if read_marker(path) is None:
            run.write(MARKER, (json.dumps({"schema": SCHEMA, **identity}, indent=2) + "\n").encode())
        yield run


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold OUT/.lock. The kernel releases it when the process ends, however it ends."""
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path} is in use by another run; wait for it or give another -o") from None
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Delete what runs write; the marker last, so that a kill in between leaves a folder known as ours."""
    for name in OURS:
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
