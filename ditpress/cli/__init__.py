"""The command line: one command per recipe, and inspect, validate, check, report, bench, sample.

Imports torch only inside the commands, so that help is quick.
"""

from ditpress.cli.group import cli, main

__all__ = ["cli", "main"]
