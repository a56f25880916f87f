"""Finished steps of a run: a step is done when its manifest is there and its files are as it says."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ditpress.files import hash_tree, sha256_file
from ditpress.recipes.measure import Measure, measure
from ditpress.recipes.run import RunFolder

MANIFEST = "manifest.json"
SCHEMA = 1  # raised when the meaning of a checkpoint changes: old ones are then done anew


def content_key(*parts: object) -> str:
    """sha256 over the JSON of ``parts`` and the schema: equal keys mean equal bits."""
    text = json.dumps([SCHEMA, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a finished step wrote (sha256 by path relative to OUT) and what it cost."""

    key: str
    name: str
    seconds: float
    peak_rss_bytes: int
    files: dict[str, str]
    schema: int = SCHEMA
    facts: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The folder ``stages/`` of a run: ``NN-name-<first 12 digits of the key>/`` for every finished step."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.records: dict[tuple[int, str], Manifest] = {}  # steps of this run, done now or found

    def folder(self, index: int, name: str, key: str) -> Path:
        """Where the step's files lie."""
        return self.run.path / "stages" / f"{index:02d}-{name}-{key[:12]}"

    def work(self, index: int, name: str, key: str) -> Path:
        """Where a step keeps what a killed run goes on from; not made here."""
        folder = self.folder(index, name, key)
        return folder.with_name(f".work-{folder.name}")

    def clear_work(self, index: int, name: str, key: str) -> None:
        """Remove what an unfinished step kept: it is done."""
        shutil.rmtree(self.work(index, name, key), ignore_errors=True)

    def find(self, index: int, name: str, key: str) -> Manifest | None:
        """The manifest of a finished step, or None where it or one of its files is not as written."""
        manifest = self.read(index, name, key)
        if manifest is None:
            return None
        for relative, digest in manifest.files.items():
            path = self.run.path / relative
            if not path.is_file() or sha256_file(path) != digest:
                return None
        self.records[index, name] = manifest
        return manifest

    def note(self, index: int, name: str, key: str) -> None:
        """Take a finished step into the records without a look at its files: a later step stands on them."""
        manifest = self.read(index, name, key)
        if manifest is not None:
            self.records[index, name] = manifest

    def read(self, index: int, name: str, key: str) -> Manifest | None:
        """The manifest of a step, or None where there is none that can be read or it is of another key."""
        try:
            data = json.loads((self.folder(index, name, key) / MANIFEST).read_text(encoding="utf-8"))
            manifest = Manifest(**data)
        except (OSError, ValueError, TypeError):
            return None
        return manifest if manifest.key == key and manifest.schema == SCHEMA else None

    def do(
        self,
        index: int,
        name: str,
        key: str,
        fill: Callable[[Path], dict[str, Any] | None],
        publish: str | None = None,
    ) -> Manifest:
        """Do the step: ``fill(folder)`` writes its files and may return facts for the manifest.

        With ``publish`` the files appear under that name in OUT ("model") and ``stages/`` holds the manifest
        only.
        """
        relative = self.folder(index, name, key).relative_to(self.run.path).as_posix()
        prefix = publish or relative
        made: list[Manifest] = []

        def work(part: Path) -> None:
            cost = Measure()
            with measure(cost):
                facts = fill(part) or {}
            files = {f"{prefix}/{path}": digest for path, digest in hash_tree(part).items()}
            made.append(Manifest(key, name, cost.seconds, cost.peak_rss_bytes, files, SCHEMA, facts))
            if publish is None:
                _write(part, made[0])

        self.run.publish(prefix, work)
        if publish is not None:
            self.run.publish(relative, lambda part: _write(part, made[0]))
        self.records[index, name] = made[0]
        return made[0]


def _write(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
