"""One command per recipe, and ``run`` for recipes in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ditpress.cli.options import (
    DEFAULT_MODEL,
    DEVICE,
    GUIDANCE,
    JSON,
    QUIET,
    SAMPLES,
    SCHEDULER,
    SEED,
    STEPS,
    silence,
    with_options,
)
from ditpress.recipes.builtin import builtin_descriptions

run_options = with_options(
    click.option(
        "-o", "out", type=click.Path(path_type=Path), help="The run folder OUT; resumes a run in it."
    ),
    click.option(
        "--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Override a setting; repeatable."
    ),
    click.option("--dry-run", is_flag=True, help="Print size, time and memory estimates; touch nothing."),
    click.option("--fresh", is_flag=True, help="Start anew; replaces an earlier run in OUT."),
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Latents and labels (.npz, .safetensors) for the stages that learn; default: none are needed.",
    ),
    SEED,
    STEPS,
    SAMPLES,
    GUIDANCE,
    SCHEDULER,
    DEVICE,
    JSON,
    QUIET,
)


# Short options of single recipes: each is one setting, and takes the place of the other.
BUDGETS = {"mixed": {"bits": "mixed.bits", "budget": "mixed.budget"}}
_BUDGET_HELP = {"bits": "At most so many bits a parameter: 3.2.", "budget": "At most so many bytes: 0.3GB."}


def recipe_command(name: str) -> click.Command:
    budgets = BUDGETS.get(name, {})

    def command(model: str, **options: Any) -> None:
        given = {option: value for option in budgets if (value := options.pop(option)) is not None}
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(f'--{option}' for option in given)}: give one of them")
        if given:
            settings = (f"{setting}={given.get(option, 'null')}" for option, setting in budgets.items())
            options["overrides"] = (*options["overrides"], *settings)
        _run(name, model, **options)

    description = builtin_descriptions()[name]
    command = run_options(click.argument("model", default=DEFAULT_MODEL)(command))
    for option in reversed(budgets):
        command = click.option(f"--{option}", help=_BUDGET_HELP[option])(command)
    return click.command(name, help=description, short_help=description)(command)


@click.command("run")
@click.argument("recipe")
@click.argument("model", default=DEFAULT_MODEL)
@run_options
def run_command(recipe: str, model: str, **options: Any) -> None:
    """Run a recipe from a YAML file (or a built-in one by name) on MODEL."""
    _run(recipe, model, **options)


def _run(
    recipe: str,
    model: str,
    *,
    out: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    fresh: bool,
    data: Path | None,
    seed: int | None,
    steps: int | None,
    samples: int | None,
    guidance: float | None,
    scheduler: Path | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    if out is None and not dry_run:
        raise click.UsageError("missing -o OUT, the folder for the results")
    named: dict[str, float | None] = {"seed": seed, "validation.steps": steps, "validation.samples": samples}
    named |= {"calibration.guidance": guidance, "validation.guidance": guidance}
    settings = [*overrides, *(f"{name}={value}" for name, value in named.items() if value is not None)]
    from ditpress.recipes.recipe import load_recipe, with_data

    parsed = load_recipe(recipe, settings)
    if data is not None:
        parsed = with_data(parsed, data)
    from ditpress.processes import join
    from ditpress.recipes import show
    from ditpress.recipes.engine import run_recipe
    from ditpress.recipes.loading import load_for

    with silence(quiet or as_json):
        if dry_run:
            from ditpress.recipes.estimate import estimate

            denoiser, parsed = load_for(model, parsed, scheduler=scheduler, device=device)
            guess = estimate(denoiser, parsed)
            click.echo(json.dumps(guess.to_data(), indent=2)) if as_json else show.estimate_table(guess)
            return
        assert out is not None
        result = run_recipe(model, parsed, out, fresh=fresh, scheduler=scheduler, device=device)
    if not join().first:
        return
    show.finished(result, as_json, quiet)


@click.command("recipes")
@JSON
def recipes_command(as_json: bool) -> None:
    """List the built-in recipes."""
    descriptions = builtin_descriptions()
    if as_json:
        click.echo(json.dumps(descriptions, indent=2))
        return
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        click.echo(f"{name:{width}} {description}")
