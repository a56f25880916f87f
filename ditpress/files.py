"""Files and folders that exist completely or not at all, their hashes, and what a full disk looks like."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ditpress.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part of it.

    Raises:
        InputError: the folder cannot be written to (full disk, no rights); the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with disk_errors(path.name, path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary path; the file that the block writes there takes the place of ``target`` when it ends well.

    For files too large to be held as bytes. The temporary name is always the same: what a killed process
    left is written over. One writer at a time.

    Raises:
        InputError: see :func:`write_atomic`.
    """
    temporary = target.with_name(f".{target.name}.part")
    with disk_errors(target.name, target.parent):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path | str, scratch: Path | None = None) -> Iterator[Path]:
    """A temporary folder which takes the place of ``target`` when the block ends well.

    Every file is brought to the disk before the rename, so that a reader sees the old folder or the complete
    new one, after a crash too. When the block raises, the temporary folder goes and the old one stays.

    Args:
        target: the folder to make or to replace.
        scratch: where to work, on the same file system; emptied first, removed at the end. Default: a hidden
            folder of a fresh name beside ``target``.

    Raises:
        InputError: the place cannot be written to (full disk, no rights, a file in the way).
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, expected a folder to write to; choose another name")
    work = scratch or target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with disk_errors(target.name, target.parent):
        try:
            shutil.rmtree(work, ignore_errors=True)
            content = work / "content"  # temporary folders that the block makes beside it are swept away too
            content.mkdir(parents=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            yield content
            _share(content)
            _replace_folder(content, target, work / "old")
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _replace_folder(source: Path, target: Path, trash: Path) -> None:
    """Put the finished ``source`` in the place of ``target``; what was there goes to ``trash``.

    A folder cannot replace a filled one in one call. Killed between the two renames, ``target`` is missing,
    never half there.
    """
    for path in (*source.rglob("*"), source):
        _sync(path)
    if not target.exists():
        source.rename(target)
    else:
        target.rename(trash)
        try:
            source.rename(target)
        except OSError:
            trash.rename(target)
            raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _share(folder: Path) -> None:
    """Give files the rights that the umask asks for: safetensors makes its own private."""
    mask = os.umask(0o022)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def sha256_file(path: Path) -> str:
    """Hex digest of the content of ``path``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``, by its path relative to it."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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
    except InputError:
        raise
    except Exception as error:
        codes = {cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno}
        texts = " ".join(str(cause) for cause in _causes(error))
        if codes.intersection(_FULL) or os.strerror(errno.ENOSPC) in texts:
            raise InputError(
                f"{place}: the disk is full while writing {what}; free some space and run again, "
                "what is finished is kept"
            ) from error
        refused = sorted(codes.intersection(_REFUSED))
        if refused:
            raise InputError(
                f"{place}: cannot write {what} ({os.strerror(refused[0])}); choose a folder that you may "
                "write to"
            ) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
