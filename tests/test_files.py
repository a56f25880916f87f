"""Files and folders that exist completely or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ditpress.errors import InputError
from ditpress.files import atomic_file, atomic_folder, hash_tree, write_atomic


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as scratch:
        (scratch / "a").write_text("1")
        assert not target.exists()
    with atomic_folder(target) as scratch:
        (scratch / "b").write_text("2")
        assert listing(target) == {"a"}
    assert listing(tmp_path) == {"out", "out/b"}


def test_safetensors_own_message_about_a_full_disk(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with (
        pytest.raises(InputError, match="the disk is full while writing out"),
        atomic_folder(tmp_path / "out"),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert listing(tmp_path) == set()


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as content:
        (content / "a").write_text("1")

    def fail() -> None:
        with atomic_folder(target) as content:
            (content / "b").write_text("2")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert listing(tmp_path) == {"out", "out/a"}


def test_write_atomic_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "x", b"1")
    write_atomic(tmp_path / "deep" / "x", b"22")
    assert listing(tmp_path) == {"deep", "deep/x"}
    assert (tmp_path / "deep" / "x").read_bytes() == b"22"
    assert hash_tree(tmp_path) == {"deep/x": hashlib.sha256(b"22").hexdigest()}


def test_an_atomic_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"1")
        assert not target.exists()

    def fail() -> None:
        with atomic_file(target) as temporary:
            temporary.write_bytes(b"22")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_bytes() == b"1"
    assert [path.name for path in target.parent.iterdir()] == ["x"]
