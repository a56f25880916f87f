"""The values of a format's tables, and for any x the nearest of them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.formats import Format


class Grid:
    """The values of scalar tables in ascending order; a format has one table, or several to choose from.

    All values are whole numbers, so the borders between neighbours are multiples of 1/2: ``floor(2 x)``
    decides the nearest value, and a small lookup table replaces the search. Halfway goes up.

    Attributes:
        tables: how many tables the format has.
        size: entries of one table.
        entries: the codebook as float32 ``[tables * size]``: code c of table t is ``entries[t * size + c]``.
        low, high: the least and the largest value of all tables.
        uniform: one table, of all whole numbers from ``low`` to ``high``.
        value_of_half: float32; the value of the first table nearest to x is at ``floor(2 x) - 2 low``, and as
            many entries further on that of every next table.
    """

    def __init__(self, format: Format) -> None:
        check_format(format)
        self.entries = format.codebook_tensor().flatten().float()
        self.size = format.entries
        self.tables = len(self.entries) // self.size
        parts = [_sorted(part.tolist()) for part in self.entries.int().split(self.size)]
        everything = [value for values, _ in parts for value in values]
        self.low, self.high = min(everything), max(everything)
        self.largest = max(-self.low, self.high)
        # The side that a group's largest weight is scaled to; the other side may reach further (int4: -8).
        self.anchor = min(-self.low, self.high) if min(-self.low, self.high) > 0 else self.largest
        first = parts[0][0]
        self.ternary = self.tables == 1 and first == [-1, 0, 1]
        self.uniform = self.tables == 1 and first == list(range(self.low, self.high + 1))
        halves = torch.arange(2 * self.low, 2 * self.high + 1, dtype=torch.float32) / 2
        self._width = len(halves)
        values, codes = [], []
        for table, code in parts:
            sorted_values = torch.tensor(table, dtype=torch.float32)
            borders = (sorted_values[1:] + sorted_values[:-1]) / 2
            index = torch.bucketize(halves, borders, right=True)
            values.append(sorted_values[index])
            codes.append(torch.tensor(code, dtype=torch.uint8)[index])
        self.value_of_half = torch.cat(values)
        self._code_of_half = torch.cat(codes)
        self._code_of_value = torch.tensor(parts[0][1], dtype=torch.uint8)

    def nearest_(self, x: Tensor) -> Tensor:
        """Replace every entry of the contiguous float32 ``x`` by the nearest value of the first table."""
        if self.uniform:
            return x.round_().clamp_(self.low, self.high)
        torch.index_select(self.value_of_half, 0, self._half_(x).view(-1), out=x.view(-1))
        return x

    def codes_of_nearest(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """The code of the nearest value for every entry of float32 ``x`` [N, ...], uint8; ``x`` is scratch.

        Args:
            table: whole numbers [N], the table of every row; None: the first one.
        """
        if self.uniform:
            index = x.round_().clamp_(self.low, self.high).sub_(self.low).long()
            return self._code_of_value[index]
        index = self._half_(x)
        if table is not None:
            index += (table.long() * self._width).view(-1, *[1] * (x.dim() - 1))
        return self._code_of_half[index]

    def values_of(self, codes: Tensor, table: Tensor | None = None) -> Tensor:
        """The values, float32, that ``codes`` [N, ...] stand for; ``table`` as above."""
        index = codes.long()
        if table is not None:
            index += (table.long() * self.size).view(-1, *[1] * (codes.dim() - 1))
        return self.entries[index]

    def _half_(self, x: Tensor) -> Tensor:
        """Places of ``x`` in a table by halves, int64 in the shape of ``x``."""
        return x.mul_(2).floor_().clamp_(2 * self.low, 2 * self.high).sub_(2 * self.low).long()


@lru_cache(maxsize=32)
def grid_of(format: Format) -> Grid:
    """The grid of ``format``; raises InputError as :func:`check_format`."""
    return Grid(format)


def check_format(format: Format) -> None:
    """Raise InputError unless ``format`` rounds weights one by one: single values from fixed tables."""
    if format.vector_length != 1 or format.codebook is None:
        raise InputError(
            f"format {format.name} holds vectors of {format.vector_length} weights; round to nearest "
            "takes formats of single values, such as int4 or fp4-e2m1"
        )


def _sorted(table: list[int]) -> tuple[list[int], list[int]]:
    """The usable values of ``table`` in ascending order, and the code of each."""
    # -128 has no positive counterpart in int8, and kernels negate entries: it stays unused.
    codes: dict[int, int] = {}
    for code, value in enumerate(table):
        if value >= -127:
            codes.setdefault(value, code)  # of +0 and -0 the first, as of ternary-2bit's two zeros
    values = sorted(codes)
    return values, [codes[value] for value in values]
