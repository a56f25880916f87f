"""The processes of torchrun beside the first one, which runs the recipe: they train along.

The first process records, saves, exports and reports as ever. Before a stage that several processes can share
it tells the others from what to start; they load that from the run folder, apply the stage with it, and throw
their copy of the result away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditpress.calibrate.calls import load_calls
from ditpress.compress.stage import RunContext
from ditpress.errors import StageError
from ditpress.load.denoiser import Denoiser
from ditpress.processes import Processes
from ditpress.progress import quiet
from ditpress.recipes import steps
from ditpress.recipes.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """What the others need to apply a stage with the first process: folders on a disk that all of them see.

    Attributes:
        index: of the stage in the recipe, from 1.
        start: the transformer before it; None: as it was loaded.
        calls: the recorded calls.
        facts: what the stages before found out.
        work: of :class:`ditpress.compress.stage.RunContext`.
    """

    index: int
    start: Path | None
    calls: Path
    facts: Sequence[Mapping[str, Any]]
    work: Path


def follow(denoiser: Denoiser, recipe: Recipe, original: Any, processes: Processes) -> None:
    """Take part in every stage that the first process announces, until it says that it is done.

    Args:
        denoiser: as loaded; it is used up.
        recipe: the completed one, the same as the first process has.
        original: see :class:`ditpress.compress.stage.RunContext`.
        processes: this one and the others.

    Raises:
        StageError: the run folder is on no disk that this process sees.
    """
    with quiet():
        while (task := processes.shared()) is not None:
            if not task.calls.is_dir():
                raise StageError(
                    f"{task.calls} is not there for process {processes.rank}; all processes need the run "
                    "folder on a disk that they share"
                )
            if task.start is not None:
                denoiser = steps.reload(denoiser, task.start)
            context = RunContext(load_calls(task.calls), original, task.facts, task.work, processes)
            recipe.stages[task.index - 1].apply_in_run(denoiser, {}, context)


def absolute(path: Path) -> Path:
    """A path that means the same wherever another process stands; links stay."""
    return Path(os.path.abspath(path))
