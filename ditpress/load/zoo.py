"""The models that ship inside the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ditpress.errors import InputError

DATA = Path(__file__).resolve().parent.parent / "data"

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class ZooEntry:
    """What the folder of a bundled model does not say by itself.

    ``settings`` are constructor arguments of its pipeline: labels, captions, and how it is best sampled.
    """

    name: str
    summary: str
    settings: Mapping[str, object] = field(default_factory=dict)


ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry(
            "mnist-dit",
            "class-conditional pixel-space DiT on 28x28 handwritten digits",
            {
                "id2label": dict(enumerate(_DIGITS)),
                "caption": "a photo of the digit {label}",
                "default_steps": 25,
                "default_guidance": 1.5,
            },
        ),
        ZooEntry("mnist-clip", "small CLIP on handwritten digits: the default feature extractor"),
    )
}


def zoo_entry(name: str) -> ZooEntry:
    """The entry ``name``. Raises InputError for an unknown one."""
    if name not in ZOO:
        raise InputError(f"zoo:{name}: no such bundled model, expected one of {', '.join(sorted(ZOO))}")
    return ZOO[name]


def zoo_path(name: str) -> Path:
    """The folder of the bundled model ``name``.

    Raises InputError for an unknown name, or when the package was installed without its model files.
    """
    path = DATA / zoo_entry(name).name
    if not path.is_dir():
        raise InputError(f"zoo:{name}: {path} is missing, expected the bundled files; reinstall ditpress")
    return path
