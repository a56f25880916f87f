"""``inspect``, ``bench`` and ``sample``: a look at one model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ditpress.cli.options import (
    DEFAULT_MODEL,
    DEVICE,
    GUIDANCE,
    JSON,
    QUIET,
    SCHEDULER,
    SEED,
    STEPS,
    silence,
    with_options,
)


@click.command("inspect")
@click.argument("model", default=DEFAULT_MODEL)
@with_options(SCHEDULER, DEVICE, JSON)
def inspect_command(model: str, scheduler: Path | None, device: str, as_json: bool) -> None:
    """Show what MODEL is made of: family, size, linears by role and format."""
    from ditpress.recipes import show
    from ditpress.recipes.inspection import inspect_model

    with silence(as_json):
        found = inspect_model(model, scheduler=scheduler, device=device)
    click.echo(json.dumps(found, indent=2)) if as_json else show.inspection_table(found)


@click.command("bench")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), help="Threads of ONNX Runtime; default: as PyTorch.")
@with_options(JSON, QUIET)
def bench_command(out: Path, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Time one denoising step of the run OUT against the original in fp32, both in ONNX Runtime."""
    from ditpress.recipes import show
    from ditpress.recipes.bench import bench_run

    with silence(quiet or as_json):
        speed = bench_run(out, threads=threads)
    click.echo(json.dumps(speed.model_dump(), indent=2)) if as_json else show.speed_line(speed)


@click.command("sample")
@click.argument("model", default=DEFAULT_MODEL)
@click.option(
    "-o", "out", type=click.Path(path_type=Path), required=True, help="PNG file with a grid of the images."
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=16, show_default=True, help="Number of images."
)
@with_options(SEED, STEPS, GUIDANCE, SCHEDULER, DEVICE, QUIET)
def sample_command(
    model: str,
    out: Path,
    samples: int,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    scheduler: Path | None,
    device: str,
    quiet: bool,
) -> None:
    """Draw images from MODEL, original or compressed, into one PNG."""
    from ditpress.recipes.inspection import sample_grid

    with silence(quiet):
        sample_grid(
            model,
            out,
            count=samples,
            seed=seed or 0,
            steps=steps,
            guidance=guidance,
            scheduler=scheduler,
            device=device,
        )
    if not quiet:
        click.echo(str(out))
