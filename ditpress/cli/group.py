"""The group of all commands, and the entry point."""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

import click

from ditpress.cli.compress import recipe_command, recipes_command, run_command
from ditpress.cli.fidelity import check_command, report_command, validate_command
from ditpress.cli.model import bench_command, inspect_command, sample_command
from ditpress.errors import DitpressError
from ditpress.recipes.builtin import builtin_names
from ditpress.version import VERSION

FAILED = 3  # exit code for what nobody foresaw


class Recipes(click.Group):
    """Every built-in recipe is a command; each error is one line on stderr."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*builtin_names(), *super().list_commands(context)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in builtin_names():
            return recipe_command(name)
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
@click.version_option(VERSION, prog_name="ditpress", message="%(prog)s %(version)s")
@click.option("--verbose", is_flag=True, help="Log every step, and show where an unforeseen error happened.")
def cli(verbose: bool) -> None:
    """Make pretrained Diffusion Transformers small and fast after training.

    MODEL is zoo:NAME, a diffusers folder or hub id, a folder with only a transformer, the OUT of an earlier
    run, or random:DiT-XL/2.
    """
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("ditpress").setLevel(logging.DEBUG if verbose else logging.WARNING)


for _command in (
    run_command,
    recipes_command,
    inspect_command,
    validate_command,
    check_command,
    report_command,
    bench_command,
    sample_command,
):
    cli.add_command(_command)
