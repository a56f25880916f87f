"""The errors a user can meet. Each message is one line: the thing, what was expected, what to do."""

from __future__ import annotations


class DitpressError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code = 3


class InputError(DitpressError, ValueError):
    """Bad usage or bad input: an unknown name, a broken checkpoint, a setting that cannot work."""

    exit_code = 2


class GateError(DitpressError):
    """A fidelity gate failed: the run worked, its result is not good enough."""

    exit_code = 1


class StageError(DitpressError, RuntimeError):
    """A stage of a recipe failed although its input was valid."""

    exit_code = 3
