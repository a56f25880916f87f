"""Files and folders that exist completely or not at all, and what a full disk looks like."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ditpress.errors import InputError


def sha256_file(path: Path) -> str:
    """Hex digest of the content of ``path``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(folder: Path, root: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``, by its path relative to ``root``."""
    return {
        path.relative_to(root).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sync_tree(folder: Path) -> None:
    """Bring every file and folder below ``folder`` to the disk, so that a rename publishes whole files."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(source: Path, target: Path, trash: Path) -> None:
    """Put the finished folder ``source`` in the place of ``target``; the old one goes by way of ``trash``.

    All three lie on one file system. Killed between the two renames, ``target`` is missing, never half there.
    """
    sync_tree(source)
    if target.exists():
        os.rename(target, trash)
    os.rename(source, target)
    shutil.rmtree(trash, ignore_errors=True)


def free_bytes(path: Path) -> int:
    """Free space of the file system that holds ``path``, or its nearest existing parent."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


@contextlib.contextmanager
def disk_errors(what: str, place: Path) -> Iterator[None]:
    """Turn a full disk or missing rights while writing ``what`` into an InputError that says so.

    safetensors and ONNX report a full disk in exceptions of their own, which only name it in their text.
    """
    try:
        yield
    except Exception as error:
        codes = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
        texts = " ".join(str(cause) for cause in _causes(error))
        if codes & {errno.ENOSPC, errno.EDQUOT} or os.strerror(errno.ENOSPC) in texts:
            raise InputError(
                f"{place}: the disk is full while writing {what}; free some space and run again, "
                "what is finished is kept"
            ) from error
        if not isinstance(error, InputError) and codes & {
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
        }:
            raise InputError(
                f"{place}: cannot write {what}; choose a folder that you may write to"
            ) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
