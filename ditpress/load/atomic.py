"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ditpress.errors import InputError, StageError


@contextlib.contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """A temporary folder beside ``target`` which takes its place when the block ends well.

    Every file is flushed to disk before the rename, so that a reader sees the old folder or the complete
    new one, after a crash too. When the block raises, the temporary folder is removed and the old one stays.

    Raises:
        InputError: the place cannot be written (missing rights, read-only disk, a file in the way).
        StageError: the disk is full.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, expected a folder to write to; choose another name")
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        scratch.chmod(0o777 & ~_umask())
        yield scratch
        for path in sorted(scratch.rglob("*")):
            if path.is_file():
                path.chmod(0o666 & ~_umask())  # safetensors makes its files private
            _sync(path)
        _sync(scratch)
        _swap(scratch, target)
    except Exception as error:
        explained = _explained(error, target)
        if explained is None:
            raise
        raise explained from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, target: Path) -> None:
    """Put ``scratch`` in the place of ``target``; a folder that was there is removed afterwards."""
    if not target.exists():
        scratch.rename(target)
    else:
        # A directory cannot replace a filled one in one call: the old one steps aside first.
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        previous = old / target.name
        target.rename(previous)
        try:
            scratch.rename(target)
        except OSError:
            previous.rename(target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's umask: ``mkdtemp`` ignores it and would leave a folder nobody else can read."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _explained(error: Exception, target: Path) -> InputError | StageError | None:
    """What the user can do about a failed write; None for any other error."""
    code = getattr(error, "errno", None)
    # safetensors reports a full disk as its own error, with the system's text inside.
    if code in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
        return StageError(f"{target}: the disk is full, nothing was written; free some space and run again")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return InputError(f"{target}: cannot be written ({os.strerror(code)}); choose another folder")
    return None
