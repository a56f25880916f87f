"""A row of a table, and which rows are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Self


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Attributes:
        name: unique, of letters that a folder can have.
        kind: what it is; each table has its own kinds.
        of: what it belongs to, as its table says.
        recipe: name of the recipe that makes it.
        overrides: settings of the recipe, as ``--set`` takes them.
        without: kinds of stages that are left out of the recipe.
        label: in the table; "": the name.
    """

    name: str
    kind: str
    of: str = ""
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    label: str = ""

    @property
    def title(self) -> str:
        return self.label or self.name

    def to_data(self) -> dict[str, Any]:
        """Plain data, for a worker and for keys."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        return cls(**{**data, "overrides": tuple(data["overrides"]), "without": tuple(data["without"])})


def matching(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The names that match a pattern (* and ?); all without one.

    Raises:
        ValueError: a pattern that matches no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{pattern}: no such row; known: {', '.join(names)}")
    return {name for name in names if not patterns or any(fnmatchcase(name, p) for p in patterns)}
