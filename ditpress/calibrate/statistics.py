"""Streaming statistics of what a layer reads: each sees one batch at a time and keeps only its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ditpress.errors import InputError


@dataclass(frozen=True)
class Want:
    """A statistic of one layer's input: the layer's full name, and a name in ``STATISTICS``."""

    layer: str
    statistic: str


class Statistic(Protocol):
    """One number or tensor about the inputs of one layer."""

    name: str

    def update(self, x: Tensor) -> None:
        """Take in one batch, ``x`` [..., K]."""

    def result(self) -> Tensor:
        """What was found; called once, after at least one update."""


class InputAbsMax:
    """Largest |x| per input channel over tokens, batch and timesteps: float32 [K].

    The activation range of SmoothQuant (Xiao et al. 2023, eq. 4).
    """

    name = "input_absmax"

    def __init__(self) -> None:
        self._largest: Tensor | None = None

    def update(self, x: Tensor) -> None:
        largest = x.detach().float().abs().reshape(-1, x.shape[-1]).amax(dim=0)
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def result(self) -> Tensor:
        assert self._largest is not None, "result() before update()"
        return self._largest


STATISTICS: dict[str, type[InputAbsMax]] = {cls.name: cls for cls in (InputAbsMax,)}


def new_statistic(name: str) -> Statistic:
    """A fresh statistic. Raises InputError for an unknown name."""
    if name not in STATISTICS:
        raise InputError(f"statistic {name!r}: unknown, expected one of {', '.join(sorted(STATISTICS))}")
    return STATISTICS[name]()
