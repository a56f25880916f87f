"""One progress bar over all denoising steps of all batches."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, cast

from diffusers import DiffusionPipeline

from ditpress.progress import track


@contextlib.contextmanager
def one_bar(pipeline: DiffusionPipeline, description: str, total: int) -> Iterator[None]:
    """Inside this context ``pipeline`` reports its steps, ``total`` in all, to one bar instead of its own."""
    bar = cast("Generator[int, None, None]", track(range(total), description, total))
    pipeline.progress_bar = _StepBar(bar)
    try:
        yield
        for _ in bar:  # counts the last step as done
            pass
    finally:
        del pipeline.progress_bar  # the method of the class is visible again
        bar.close()


class _StepBar:
    """Stands in for ``DiffusionPipeline.progress_bar``, in both ways in which pipelines use it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, iterable: Iterable | None = None, total: int | None = None) -> Any:
        return self if iterable is None else self._over(iterable)

    def _over(self, iterable: Iterable) -> Iterator:
        for item in iterable:
            yield item
            self.update()

    def __enter__(self) -> _StepBar:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def update(self, count: int = 1) -> None:
        for _ in range(count):
            next(self._bar, None)
