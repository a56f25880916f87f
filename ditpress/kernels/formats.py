"""Number formats of low-bit weights, each a small table.

Every weight is stored as ``W[n, k] ≈ scale[n, k // group] * codebook[code[n, k // d]][k % d]``. A format is
the part of it that does not depend on the layer: bits per code, the codebook (int8 entries), the vector
length d.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ditpress.errors import InputError


@dataclass(frozen=True)
class Format:
    """A weight format: ``codebook[code]`` are the int8 values that a code stands for.

    Attributes:
        name: the name used in recipes and checkpoints.
        bits: bits per code (1, 2, 4 or 8).
        codebook: ``2**bits`` entries of ``vector_length`` integers in [-128, 127].
    """

    name: str
    bits: int
    codebook: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise InputError(f"format {self.name!r}: {self.bits} bits per code, expected 1, 2, 4 or 8")
        if len(self.codebook) != 2**self.bits:
            raise InputError(
                f"format {self.name!r}: codebook of {len(self.codebook)} entries, expected {2**self.bits}"
            )
        if len({len(entry) for entry in self.codebook}) != 1 or not self.codebook[0]:
            raise InputError(f"format {self.name!r}: codebook entries must have one common length >= 1")
        if any(not -128 <= value <= 127 for entry in self.codebook for value in entry):
            raise InputError(f"format {self.name!r}: codebook entries must be integers in [-128, 127]")

    @property
    def vector_length(self) -> int:
        """Consecutive weights along K that one code describes (1: scalar quantization)."""
        return len(self.codebook[0])

    @property
    def max_abs(self) -> int:
        """Largest magnitude in the codebook."""
        return max(abs(value) for entry in self.codebook for value in entry)

    def codebook_tensor(self) -> Tensor:
        """The codebook as int8 ``[2**bits, vector_length]`` on the CPU."""
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
        Format("int8", 8, _integers(8)),
        Format("int4", 4, _integers(4)),
        Format("fp4-e2m1", 4, _minifloat(2, 1)),
        Format("fp4-e1m2", 4, _minifloat(1, 2)),
        Format("fp4-e3m0", 4, _minifloat(3, 0)),
        Format("nf4", 4, _normal_float()),
    )
}
"""The known formats by name. int8 and int4 are offset codes: quantizers use -127..127 and -8..7."""


def get_format(name: str) -> Format:
    """Return the format called ``name``; raises InputError for an unknown one."""
    try:
        return FORMATS[name]
    except KeyError:
        raise InputError(f"unknown weight format {name!r}; expected one of {', '.join(FORMATS)}") from None
