"""``optimum-cli ditpress ...``: the commands of ditpress inside optimum's command line.

optimum imports every file of this namespace package at its start, so nothing heavy is imported here.
"""

from __future__ import annotations

import sys
from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class DitpressCommand(BaseOptimumCLICommand):
    """Hands everything after ``optimum-cli ditpress`` to the command line of ditpress."""

    COMMAND = CommandInfo(
        name="ditpress", help="Compress Diffusion Transformers: quantize, validate, export."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("arguments", nargs=REMAINDER, help="Command and options, as after `ditpress`.")

    def run(self) -> None:
        from ditpress.cli import main

        # argparse takes an option in front of the first command for its own: the command line knows better.
        main(sys.argv[sys.argv.index("ditpress") + 1 :])


REGISTER_COMMANDS = [DitpressCommand]
