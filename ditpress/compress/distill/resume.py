"""The state of a training under way, on disk: killed at any step, it goes on to the same bits."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditpress.files import atomic_file

log = logging.getLogger(__name__)

FILE = "training.safetensors"


class Stateful(Protocol):
    """What changes in training beside the parameters: a random generator, a schedule."""

    def training_state(self) -> dict[str, Tensor]:
        """All of it, under names without dots."""

    def set_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`training_state` gave."""


class SavedTraining:
    """Parameters, their averages, the optimizer's moments and the history of the loss, in one file.

    The order of the calls is no part of it: it follows from the seed and the number of steps done. A folder
    belongs to one training; who changes its settings or its data takes another folder.

    Args:
        folder: where the file lies; made at the first save.
        every: steps between two saves.
        other: of a student that changes by more than its parameters, the rest.
    """

    def __init__(self, folder: Path, every: int, other: Stateful | None = None) -> None:
        self.path = folder / FILE
        self.every = every
        self.other = other
        self._between: dict[str, Tensor] = {}

    def mark(self) -> None:
        """Note what changes while a step is computed, such as random draws, as it is before the step.

        What :meth:`save` writes is the state before the step.
        """
        self._between = {} if self.other is None else self.other.training_state()

    def save(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        average: Sequence[Tensor] | None,
        history: Sequence[float],
    ) -> None:
        """Write the state after ``len(history)`` steps; the file before is whole until the new one is.

        Parameters and moments are those of now, what changes within a step is as :meth:`mark` found it.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        tensors = {"history": torch.tensor(history, dtype=torch.float64)}
        for index, parameter in enumerate(parameters):
            tensors[f"{index}.parameter"] = parameter.detach()
            for key, value in optimizer.state[parameter].items():
                tensors[f"{index}.{key}"] = torch.as_tensor(value)  # some count their steps in Python
        for index, tensor in enumerate(average or ()):
            tensors[f"{index}.average"] = tensor
        tensors |= {f"other.{key}": value for key, value in self._between.items()}
        with atomic_file(self.path) as temporary:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary)

    @torch.no_grad()
    def load(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        average: Sequence[Tensor] | None,
    ) -> list[float]:
        """Put the saved state in place; the history of the steps done, [] where nothing is saved.

        A file that cannot be read is reported in the log, and training starts anew.
        """
        if not self.path.is_file():
            return []
        try:
            tensors = load_file(self.path)
            history: list[float] = tensors.pop("history").tolist()
        except (SafetensorError, OSError, KeyError) as error:
            log.warning("%s cannot be read (%s); training starts anew", self.path, error)
            return []
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            owner, _, key = name.partition(".")
            moments[owner][key] = tensor
        for index, parameter in enumerate(parameters):
            state = moments[str(index)]
            parameter.copy_(state.pop("parameter"))
            if average is not None:
                average[index].copy_(state.pop("average"))
            if state:
                optimizer.state[parameter] = {key: _own(value, parameter) for key, value in state.items()}
        if self.other is not None:
            self.other.set_training_state({k: tensor.clone() for k, tensor in moments["other"].items()})
        return history

    def steps(self) -> int:
        """How many steps the file holds; 0 where there is none that can be read."""
        try:
            with safe_open(self.path, "pt") as file:
                return int(file.get_slice("history").get_shape()[0])
        except (SafetensorError, OSError):
            return 0


def _own(value: Tensor, parameter: Tensor) -> Any:
    """A saved value as the optimizer made it.

    Copies: tensors of a mapped file lie at other alignments than those that the optimizer makes. A count of
    steps is on the CPU wherever the parameters are, or a whole number of Python's.
    """
    if value.dim() == 0:
        return value.clone() if value.is_floating_point() else int(value)
    return torch.empty_like(value, device=parameter.device).copy_(value)
