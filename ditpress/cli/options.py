"""Options that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

DEFAULT_MODEL = "zoo:mnist-dit"


def with_options(*added: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator that adds all of them, in the order that help shows."""

    def decorate(function: Any) -> Any:
        for option in reversed(added):
            function = option(function)
        return function

    return decorate


SCHEDULER = click.option(
    "--scheduler", type=click.Path(path_type=Path), help="Folder whose scheduler replaces the model's own."
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="Where torch computes.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
QUIET = click.option("--quiet", is_flag=True, help="No progress bars, no table.")
SEED = click.option("--seed", type=click.IntRange(min=0), help="Seed of calibration and of the images.")
STEPS = click.option("--steps", type=click.IntRange(min=1), help="Denoising steps of the images.")
GUIDANCE = click.option("--guidance", type=float, help="Guidance scale of calibration and images.")
SAMPLES = click.option("--samples", type=click.IntRange(min=0), help="Images per model; 0: no image figures.")


@contextlib.contextmanager
def silence(quiet_run: bool) -> Iterator[None]:
    """Progress bars off, where asked for; diffusers' own are always ours to show."""
    from ditpress.progress import quiet

    with quiet() if quiet_run else contextlib.nullcontext():
        yield
