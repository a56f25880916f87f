"""Which rows are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def matching(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The names that match a pattern (* and ?); all without one.

    Raises:
        ValueError: a pattern that matches no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{pattern}: no such row; known: {', '.join(names)}")
    return {name for name in names if not patterns or any(fnmatchcase(name, p) for p in patterns)}
