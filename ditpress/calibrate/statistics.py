"""Streaming statistics of what a layer reads: each sees one batch at a time and keeps only its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from ditpress.errors import InputError

MOST_ROWS = 1024  # of "input_rows": 1024 x 4608 in float32 are 19 MB, and a mean over them is good to 3 %


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

    @staticmethod
    def bytes_for(channels: int) -> int:
        """The most memory that it holds for K = ``channels``, in bytes."""


class InputAbsMax:
    """Largest |x| per input channel over tokens, batch and timesteps: float32 [K].

    The activation range of SmoothQuant (Xiao et al. 2023, eq. 4).
    """

    name = "input_absmax"

    def __init__(self) -> None:
        self._largest: Tensor | None = None

    def update(self, x: Tensor) -> None:
        largest = _rows(x).abs().amax(dim=0)
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def result(self) -> Tensor:
        assert self._largest is not None, "result() before update()"
        return self._largest

    @staticmethod
    def bytes_for(channels: int) -> int:
        return 4 * channels


class InputMin:
    """Smallest x per input channel over tokens, batch and timesteps: float32 [K].

    What SVDQuant shifts by, so that activations after a GELU (never below -0.17) fit an unsigned format.
    """

    name = "input_min"

    def __init__(self) -> None:
        self._smallest: Tensor | None = None

    def update(self, x: Tensor) -> None:
        smallest = _rows(x).amin(dim=0)
        self._smallest = smallest if self._smallest is None else torch.minimum(self._smallest, smallest)

    def result(self) -> Tensor:
        assert self._smallest is not None, "result() before update()"
        return self._smallest

    @staticmethod
    def bytes_for(channels: int) -> int:
        return 4 * channels


class InputMax:
    """Largest x per input channel over tokens, batch and timesteps: float32 [K]."""

    name = "input_max"

    def __init__(self) -> None:
        self._negated = InputMin()

    def update(self, x: Tensor) -> None:
        self._negated.update(-x)

    def result(self) -> Tensor:
        return -self._negated.result()

    @staticmethod
    def bytes_for(channels: int) -> int:
        return 4 * channels


class InputSecondMoment:
    """Mean of ``xᵀ x`` over all rows (tokens, batch and timesteps): float32 [K, K], not centred.

    Up to a factor the Hessian of a linear's squared output error (GPTQ, Frantar et al. 2023: ``H = 2 X Xᵀ``).
    """

    name = "input_second_moment"

    def __init__(self) -> None:
        self._mean: Tensor | None = None
        self._count = 0

    def update(self, x: Tensor) -> None:
        rows = _rows(x)
        if self._mean is None:
            self._mean = rows.new_zeros(rows.shape[1], rows.shape[1])
        total = self._count + rows.shape[0]
        if total == 0:
            return
        # In place: a second matrix of the size of the mean would double the memory.
        self._mean.addmm_(rows.t(), rows, beta=self._count / total, alpha=1.0 / total)
        self._count = total

    def result(self) -> Tensor:
        assert self._mean is not None, "result() before update()"
        return self._mean

    @staticmethod
    def bytes_for(channels: int) -> int:
        return 4 * channels * channels


class InputMean:
    """Mean of every channel over all rows (tokens, batch and timesteps): float32 [K]."""

    name = "input_mean"

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def update(self, x: Tensor) -> None:
        rows = _rows(x)
        found = rows.double().sum(dim=0)
        self._sum = found if self._sum is None else self._sum + found
        self._count += rows.shape[0]

    def result(self) -> Tensor:
        assert self._sum is not None, "result() before update()"
        return (self._sum / max(1, self._count)).float()

    @staticmethod
    def bytes_for(channels: int) -> int:
        return 8 * channels


class InputRows:
    """A sample of the rows that the layer reads, as many from every update (timestep): float32 [R, K].

    R is at most ``MOST_ROWS``. Where there are more updates than that, every second, fourth, ... of them
    gives its rows. Within an update rows are drawn by a generator seeded with the number of the update: the
    same calls give the same rows, and no pattern of the image's tokens meets a pattern of the sampling.
    """

    name = "input_rows"

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}
        self._updates = 0
        self._stride = 1

    def update(self, x: Tensor) -> None:
        index, self._updates = self._updates, self._updates + 1
        if index % self._stride:
            return
        if len(self._kept) == MOST_ROWS:
            self._stride *= 2
            self._kept = {i: rows for i, rows in self._kept.items() if i % self._stride == 0}
            if index % self._stride:
                return
        quota = MOST_ROWS // (len(self._kept) + 1)
        # Rows lie in the order they were drawn in: the first ones are a sample too.
        self._kept = {i: rows[:quota].clone() for i, rows in self._kept.items()}
        rows = x.detach().reshape(-1, x.shape[-1])
        order = torch.randperm(rows.shape[0], generator=torch.Generator().manual_seed(index))[:quota]
        self._kept[index] = rows[order.to(rows.device)].float()

    def result(self) -> Tensor:
        assert self._kept, "result() before update()"
        return torch.cat(list(self._kept.values()))

    @staticmethod
    def bytes_for(channels: int) -> int:
        return 2 * 4 * MOST_ROWS * channels  # old and new sample side by side


STATISTICS: Mapping[str, type[Statistic]] = MappingProxyType(
    {cls.name: cls for cls in (InputAbsMax, InputMin, InputMax, InputSecondMoment, InputMean, InputRows)}
)


def new_statistic(name: str) -> Statistic:
    """A fresh statistic. Raises InputError for an unknown name."""
    return statistic_class(name)()


def statistic_class(name: str) -> type[Statistic]:
    """The statistic of this name. Raises InputError for an unknown one."""
    if name not in STATISTICS:
        raise InputError(f"statistic {name!r}: unknown, expected one of {', '.join(sorted(STATISTICS))}")
    return STATISTICS[name]


def _rows(x: Tensor) -> Tensor:
    """``x`` [..., K] as float32 [rows, K]."""
    return x.detach().reshape(-1, x.shape[-1]).float()
