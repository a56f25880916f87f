"""Number formats of low-bit weights, each a small table.

Every weight is stored as ``W[n, k] ≈ scale[n, k // group] * codebook[code[n, k // d]][k % d]``. A format is
the part of it that does not depend on the layer: the number of codebook entries, the vector length d and,
where all layers share it, the codebook itself (int8 values).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.packing import BITS


@dataclass(frozen=True)
class Format:
    """A weight format: ``codebook[code]`` are the int8 values that a code stands for.

    Attributes:
        name: the name used in recipes and checkpoints.
        entries: of the codebook (2, 3, 4, 16, 64 or 256); it decides how codes are packed, see
            :mod:`ditpress.kernels.packing`.
        codebook: ``entries`` tuples of ``vector_length`` integers in [-128, 127]; None: there is no fixed
            table, every layer brings its own.
        vector_length: consecutive weights along K that one code describes (1: scalar quantization).
        tables: tables of ``entries`` values in the codebook, one below the other; with more than one, every
            output channel of a layer says which of them its codes mean.
    """

    name: str
    entries: int
    codebook: tuple[tuple[int, ...], ...] | None = None
    vector_length: int = 1
    tables: int = 1

    def __post_init__(self) -> None:
        if self.entries not in BITS:
            expected = ", ".join(map(str, BITS))
            raise InputError(f"format {self.name!r}: {self.entries} entries, expected {expected}")
        if self.vector_length < 1:
            raise InputError(f"format {self.name!r}: vectors of {self.vector_length}, expected 1 or more")
        if self.tables < 1 or (self.tables > 1 and (self.entries, self.vector_length) != (16, 1)):
            raise InputError(f"format {self.name!r}: {self.tables} tables, expected 1, or more of 16 numbers")
        if self.codebook is None:
            return
        if len(self.codebook) != self.entries * self.tables:
            raise InputError(
                f"format {self.name!r}: codebook of {len(self.codebook)} entries, "
                f"expected {self.entries * self.tables}"
            )
        if any(len(entry) != self.vector_length for entry in self.codebook):
            raise InputError(
                f"format {self.name!r}: every codebook entry must hold {self.vector_length} integers"
            )
        if any(not -128 <= value <= 127 for entry in self.codebook for value in entry):
            raise InputError(f"format {self.name!r}: codebook entries must be integers in [-128, 127]")

    @property
    def bits(self) -> float:
        """Stored bits per code: log2 of the entries, 1.6 for three of them (five codes a byte)."""
        return BITS[self.entries]

    @property
    def max_abs(self) -> int:
        """Largest magnitude in the codebook; raises InputError as :meth:`codebook_tensor`."""
        return int(self.codebook_tensor().int().abs().max())

    def codebook_tensor(self) -> Tensor:
        """The codebook as int8 ``[tables * entries, vector_length]`` on the CPU.

        Raises:
            InputError: the format has no fixed table.
        """
        if self.codebook is None:
            raise InputError(
                f"format {self.name} has no fixed codebook: every layer brings its own, "
                f"give one of torch.int8 [{self.entries * self.tables}, {self.vector_length}]"
            )
        return torch.tensor(self.codebook, dtype=torch.int8)


def _integers(bits: int) -> tuple[tuple[int, ...], ...]:
    """Two's complement integers with an offset: code = value + 2**(bits-1)."""
    half = 2 ** (bits - 1)
    return tuple((code - half,) for code in range(2**bits))


def _minifloat(exponent_bits: int, mantissa_bits: int) -> tuple[tuple[int, ...], ...]:
    """All values of a sign/exponent/mantissa float without infinities, in units of its smallest step.

    Code bits from high to low: sign, exponent, mantissa, as in the OCP Microscaling Formats specification
    1.0 (FP4 in its section 5.3.3). Exponent 0 is subnormal: value = mantissa; else value =
    (2**mantissa_bits + mantissa) * 2**(exponent - 1).
    """
    magnitudes = [
        mantissa if exponent == 0 else (2**mantissa_bits + mantissa) * 2 ** (exponent - 1)
        for exponent in range(2**exponent_bits)
        for mantissa in range(2**mantissa_bits)
    ]
    return tuple((sign * magnitude,) for sign in (1, -1) for magnitude in magnitudes)


def _normal_float() -> tuple[tuple[int, ...], ...]:
    """NF4 of QLoRA (Dettmers et al. 2023, section 3 and appendix E), times 127 and rounded to int8.

    Eight quantiles of the normal distribution above zero, seven below, and zero itself, scaled to [-1, 1].
    The outermost quantile is the mean of 1 - 1/32 and 1 - 1/30.
    """
    outer = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    quantile = NormalDist().inv_cdf
    positive = [quantile(outer + (0.5 - outer) * i / 8) for i in range(8)]
    negative = [-quantile(outer + (0.5 - outer) * i / 7) for i in range(7)]
    largest = max(positive)
    return tuple((round(127 * value / largest),) for value in sorted([*negative, 0.0, *positive]))


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format("int8", 256, _integers(8)),
        Format("int4", 16, _integers(4)),
        Format("fp4-e2m1", 16, _minifloat(2, 1)),
        Format("fp4-e1m2", 16, _minifloat(1, 2)),
        Format("fp4-e3m0", 16, _minifloat(3, 0)),
        Format("fp4", 16, (*_minifloat(2, 1), *_minifloat(1, 2), *_minifloat(3, 0)), tables=3),
        Format("nf4", 16, _normal_float()),
        Format("ternary", 3, ((-1,), (0,), (1,))),
        Format("ternary-2bit", 4, ((-1,), (0,), (1,), (0,))),
        Format("vq-256x4", 256, vector_length=4),
        Format("vq-64x2", 64, vector_length=2),
    )
}
"""The known formats by name.

int8 and int4 are offset codes: quantizers use -127..127 and -8..7. fp4 has the tables of fp4-e2m1, fp4-e1m2
and fp4-e3m0, in this order, one of them for every output channel (HQ-DiT, Liu et al. 2024). ternary packs
five codes a byte, 1.6 bits a weight; ternary-2bit takes 2 bits and never uses its fourth code. vq-256x4 and
vq-64x2 (2 and 3 bits a weight) are vector quantization with a codebook per layer.
"""


def get_format(name: str) -> Format:
    """Return the format called ``name``; raises InputError for an unknown one."""
    try:
        return FORMATS[name]
    except KeyError:
        raise InputError(f"unknown weight format {name!r}; expected one of {', '.join(FORMATS)}") from None
