"""A weight as it will be stored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ditpress.compress.quantize.grid import grid_of
from ditpress.kernels.formats import Format


@dataclass(frozen=True)
class FittedWeight:
    """A weight as it will be stored: ``W[n, k] ≈ scale[n, k // group] * codebook[code[n, k // d]][k % d]``.

    Attributes:
        codes: uint8 [N, K / d], one code an entry, not packed.
        scale: float32 [N, 1] or float16 [N, G].
        format: of the codes.
        codebook: int8 [entries, d] where the format has none of its own, else None.
        table: uint8 [N], the table of every row, where the format has several, else None.
    """

    codes: Tensor
    scale: Tensor
    format: Format
    codebook: Tensor | None = None
    table: Tensor | None = None

    def values(self) -> Tensor:
        """What the codes stand for, without scales: float32 whole numbers [N, K]."""
        if self.codebook is not None:
            return self.codebook.float()[self.codes.long()].flatten(1)
        return grid_of(self.format).values_of(self.codes, self.table)

    def dequantize(self) -> Tensor:
        """The weight that is stored, float32 [N, K]."""
        values = self.values()
        groups = values.view(len(values), self.scale.shape[1], -1)
        return (groups * self.scale.float().unsqueeze(-1)).view_as(values)
