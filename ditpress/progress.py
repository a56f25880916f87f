"""Progress on stderr for anything that takes longer than two seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

DELAY_SECONDS = 2.0  # shorter work shows no bar at all

_enabled: ContextVar[bool] = ContextVar("ditpress_progress", default=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside this context no bar is shown."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items of ``iterable``; after two seconds show a bar on stderr.

    ``total`` is the number of items, taken from ``len`` where the iterable has one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not _enabled.get():
        yield from iterable
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=False,
    )
    task = bar.add_task(description, total=total)
    started, shown = time.monotonic(), False
    try:
        for item in iterable:
            if not shown and time.monotonic() - started > DELAY_SECONDS:
                bar.start()
                shown = True
            yield item
            bar.advance(task)
    finally:
        if shown:
            bar.stop()
