"""The run folder: one run at a time, whole folders or none, a full disk in any disguise."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from ditpress.errors import InputError, StageError
from ditpress.files import disk_errors
from ditpress.recipes.checkpoint import Checkpoints, content_key
from ditpress.recipes.recipe import load_recipe
from ditpress.recipes.run import open_run, read_marker, require_space

IDENTITY: dict[str, Any] = {"key": "k" * 64, "model": "m", "recipe": "r"}


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "out", IDENTITY),
        pytest.raises(InputError, match="in use by another run"),
        open_run(tmp_path / "out", IDENTITY),
    ):
        pass
    with open_run(tmp_path / "out", IDENTITY):  # free again
        assert read_marker(tmp_path / "out") == {"schema": 1, **IDENTITY}


def test_a_folder_that_cannot_be_filled_leaves_the_old_one(tmp_path: Path) -> None:
    def fill(part: Path) -> None:
        (part / "new").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_run(tmp_path, IDENTITY) as run:
        run.publish("model", lambda part: (part / "old").write_text("whole") and None)
        with pytest.raises(InputError, match="the disk is full while writing model"):
            run.publish("model", fill)
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]
        assert not list(tmp_path.glob(".part-*"))


def test_leftovers_of_a_killed_run_are_swept_away(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY):
        pass
    (tmp_path / ".part-model" / "content").mkdir(parents=True)
    with open_run(tmp_path, IDENTITY):
        assert not (tmp_path / ".part-model").exists()


def test_space_is_asked_for_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    require_space(out, 1000)
    with pytest.raises(InputError, match=r"GB free on the disk, this run writes up to 1000000\.00 GB"):
        require_space(out, 10**15)
    assert not out.exists()


def wrapped() -> StageError:
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        explained = StageError("x: nothing was written")
        explained.__cause__ = error
        return explained


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        wrapped(),
    ],
)
def test_a_full_disk_is_seen_through_every_library(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"), disk_errors("x", tmp_path):
        raise error


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyError), disk_errors("x", tmp_path):
        raise KeyError("x")


def test_a_step_counts_only_while_its_files_are_as_written(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        steps, key = Checkpoints(run), content_key("a", {"b": 1})
        assert key == content_key("a", {"b": 1}) != content_key("a", {"b": 2})
        steps.do(1, "smooth", key, lambda part: {"bytes": (part / "weights").write_bytes(b"12345")})
        found = Checkpoints(run).find(1, "smooth", key)
        assert found is not None
        assert found.facts == {"bytes": 5}
        assert Checkpoints(run).find(1, "smooth", content_key("other")) is None
        (steps.folder(1, "smooth", key) / "weights").write_bytes(b"1234")
        assert Checkpoints(run).find(1, "smooth", key) is None


def test_one_sample_is_refused() -> None:
    with pytest.raises(InputError, match="use 0, or 2 and more"):
        load_recipe("w4a8", ["validation.samples=1"])
