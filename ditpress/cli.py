"""The command line: one command per recipe, and inspect, validate, check, report, bench, sample.

Imports torch only inside the commands, so that help is quick.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from ditpress import __version__
from ditpress.errors import DitpressError
from ditpress.recipes.builtin import builtin_descriptions, builtin_names

DEFAULT_MODEL = "zoo:mnist-dit"
FAILED = 3  # exit code for what nobody foresaw


class Recipes(click.Group):
    """Every built-in recipe is a command; each error is one line on stderr."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*builtin_names(), *super().list_commands(context)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in builtin_names():
            return _recipe_command(name)
        return super().get_command(context, name)

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        from ditpress.schema import suggest

        if args and not args[0].startswith("-") and self.get_command(context, args[0]) is None:
            context.fail(f'no command "{args[0]}"; {suggest(args[0], self.list_commands(context))}')
        return super().resolve_command(context, args)


def main(args: list[str] | None = None) -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 a gate failed, 2 bad usage or input, 3 a stage failed."""
    try:
        code = cli.main(args=args, prog_name="ditpress", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.UsageError as error:
        _say(f"{error.format_message()} (see {error.ctx.command_path if error.ctx else 'ditpress'} --help)")
        sys.exit(2)
    except click.Abort:
        _say("interrupted; run the same command again to go on")
        sys.exit(130)
    except DitpressError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if logging.getLogger("ditpress").isEnabledFor(logging.DEBUG):
            raise
        lines = str(error).strip().splitlines()
        _say(f"{type(error).__name__}: {lines[0] if lines else 'no message'} (--verbose shows where)")
        sys.exit(FAILED)


def _say(message: str) -> None:
    click.echo(f"ditpress: {' '.join(message.split())}", err=True)


@click.group(cls=Recipes, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ditpress", message="%(prog)s %(version)s")
@click.option("--verbose", is_flag=True, help="Log every step, and show where an unforeseen error happened.")
def cli(verbose: bool) -> None:
    """Make pretrained Diffusion Transformers small and fast after training.

    MODEL is zoo:NAME, a diffusers folder or hub id, a folder with only a transformer, the OUT of an earlier
    run, or random:DiT-XL/2.
    """
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("ditpress").setLevel(logging.DEBUG if verbose else logging.WARNING)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_scheduler = click.option(
    "--scheduler", type=click.Path(path_type=Path), help="Folder whose scheduler replaces the model's own."
)
_device = click.option("--device", default="cpu", show_default=True, help="Where torch computes.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_quiet = click.option("--quiet", is_flag=True, help="No progress bars, no table.")
_seed = click.option("--seed", type=click.IntRange(min=0), help="Seed of calibration and of the images.")
_steps = click.option("--steps", type=click.IntRange(min=1), help="Denoising steps of the images.")
_guidance = click.option("--guidance", type=float, help="Guidance scale of calibration and images.")
_samples = click.option(
    "--samples", type=click.IntRange(min=0), help="Images per model; 0: no image figures."
)
_out = click.option(
    "-o", "out", type=click.Path(path_type=Path), help="The run folder OUT; resumes a run in it."
)

run_options = _options(
    _out,
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
    _seed,
    _steps,
    _samples,
    _guidance,
    _scheduler,
    _device,
    _json,
    _quiet,
)


# Short options of single recipes: each is one setting, and takes the place of the other.
BUDGETS = {"mixed": {"bits": "mixed.bits", "budget": "mixed.budget"}}
_BUDGET_HELP = {"bits": "At most so many bits a parameter: 3.2.", "budget": "At most so many bytes: 0.3GB."}


def _recipe_command(name: str) -> click.Command:
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


@cli.command("run")
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
    from ditpress.recipes.engine import load_for, run_recipe

    with _silence(quiet or as_json):
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
    if as_json:
        click.echo(result.report.data.to_json(), nl=False)
    elif not quiet:
        show.report_table(result)


@cli.command("recipes")
@_json
def recipes_command(as_json: bool) -> None:
    """List the built-in recipes."""
    descriptions = builtin_descriptions()
    if as_json:
        click.echo(json.dumps(descriptions, indent=2))
        return
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        click.echo(f"{name:{width}} {description}")


@cli.command("inspect")
@click.argument("model", default=DEFAULT_MODEL)
@_options(_scheduler, _device, _json)
def inspect_command(model: str, scheduler: Path | None, device: str, as_json: bool) -> None:
    """Show what MODEL is made of: family, size, linears by role and format."""
    from ditpress.recipes import show
    from ditpress.recipes.inspection import inspect_model

    with _silence(as_json):
        found = inspect_model(model, scheduler=scheduler, device=device)
    click.echo(json.dumps(found, indent=2)) if as_json else show.inspection_table(found)


measure_options = _options(
    _samples,
    _steps,
    _guidance,
    click.option(
        "--extractor",
        type=click.Path(path_type=Path),
        help="CLIP folder behind CLIP score, CMMD and the rest.",
    ),
    click.option(
        "--inception",
        metavar="FILE",
        help="Inception-v3 weights of torch-fidelity, for FID and its kin: a path or hf:OWNER/NAME/FILE.",
    ),
    click.option(
        "--lpips",
        metavar="FILE",
        help="torchvision's AlexNet or VGG16, for LPIPS: a path or hf:OWNER/NAME/FILE.",
    ),
    click.option(
        "--reference",
        type=click.Path(path_type=Path),
        help="Real images: a folder, an .npz, or a reference batch of ADM's evaluation.",
    ),
)


def _measured(options: dict[str, Any]) -> dict[str, Any]:
    """The given ones of ``measure_options`` as settings of the validation."""
    names = ("samples", "steps", "guidance", "extractor", "inception", "lpips", "reference")
    found = {name: options.pop(name) for name in names}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in found.items()
        if value is not None
    }


@cli.command("validate")
@click.argument("out", type=click.Path(path_type=Path))
@measure_options
@click.option("--against", metavar="MODEL", help="Measure against MODEL instead; the report stays as it is.")
@_options(_json, _quiet)
def validate_command(out: Path, against: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure the finished run OUT as it lies there, with other settings; rewrites its report.

    Under torchrun the processes share the samples; an interrupted measurement goes on where it stopped.
    """
    from ditpress.recipes import show
    from ditpress.recipes.revalidate import measure_against, revalidate

    settings = _measured(options)
    with _silence(quiet or as_json):
        if against is not None:
            fidelity = measure_against(out, against, settings)
            if fidelity is not None and as_json:
                click.echo(fidelity.model_dump_json(indent=2))
            elif fidelity is not None and not quiet:
                show.fidelity_table(f"{out} against {against}", fidelity)
            return
        result = revalidate(out, settings)
    if result is None:
        return
    if as_json:
        click.echo(result.report.data.to_json(), nl=False)
    elif not quiet:
        show.report_table(result)


@cli.command("check")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--baseline", type=click.Path(path_type=Path), required=True, help="JSON file in your repository."
)
@click.option("--update", is_flag=True, help="Write what is measured as the new baseline; its rules stay.")
@click.option(
    "--rules", type=click.Path(path_type=Path), help="YAML file in the place of the baseline's rules."
)
@_seed
@measure_options
@click.option("--junit", type=click.Path(path_type=Path), help="Also write JUnit XML for the CI system.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also append Markdown to this job summary.")
@_options(_json, _quiet)
def check_command(
    out: Path,
    baseline: Path,
    update: bool,
    rules: Path | None,
    seed: int | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Gate the finished run OUT: exit code 1 where it is worse than the baseline by a rule.

    Measures OUT/onnx and OUT/model as they lie there; with other settings than the baseline's it refuses.
    """
    from ditpress.recipes import show
    from ditpress.recipes.check import check

    with _silence(quiet or as_json):
        outcome = check(out, baseline, _measured(options), seed=seed, rules=rules, update=update)
    if outcome is None:
        return
    if not update:
        show.write_outcome(outcome, junit, markdown)
    if as_json:
        from ditpress.validate.gate.outputs import to_data

        click.echo(json.dumps(to_data(outcome.verdicts), indent=2))
    elif not quiet:
        show.check_table(outcome)
    outcome.require()


@cli.command("report")
@click.argument("outs", metavar="OUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "page",
    type=click.Path(path_type=Path),
    default="frontier.html",
    show_default=True,
    help="The page.",
)
def report_command(outs: tuple[Path, ...], page: Path) -> None:
    """One page of several finished runs: size against FID against time, pictures side by side."""
    from ditpress.recipes.frontier_report import write_frontier

    click.echo(str(write_frontier(outs, page)))


@cli.command("bench")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of ONNX Runtime; default: its own choice."
)
@_options(_json, _quiet)
def bench_command(out: Path, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Time one denoising step of the run OUT against the original in fp32, both in ONNX Runtime."""
    from ditpress.recipes import show
    from ditpress.recipes.bench import bench_run

    with _silence(quiet or as_json):
        speed = bench_run(out, threads=threads)
    click.echo(json.dumps(speed.model_dump(), indent=2)) if as_json else show.speed_line(speed)


@cli.command("sample")
@click.argument("model", default=DEFAULT_MODEL)
@click.option(
    "-o", "out", type=click.Path(path_type=Path), required=True, help="PNG file with a grid of the images."
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=16, show_default=True, help="Number of images."
)
@_options(_seed, _steps, _guidance, _scheduler, _device, _quiet)
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

    with _silence(quiet):
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


@contextlib.contextmanager
def _silence(quiet_run: bool) -> Iterator[None]:
    """Progress bars off, where asked for; diffusers' own are always ours to show."""
    from ditpress.progress import quiet

    with quiet() if quiet_run else contextlib.nullcontext():
        yield


if __name__ == "__main__":
    main()
