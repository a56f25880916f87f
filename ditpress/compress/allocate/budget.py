"""Sizes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from ditpress.errors import InputError

UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*")


def parse_bytes(text: str) -> int:
    """``"0.3GB"`` to 300,000,000: whole bytes, rounded down.

    Raises:
        InputError: no number with a known unit, or less than one byte.
    """
    match = _SIZE.fullmatch(text)
    size = 0 if match is None or match[2] not in UNITS else int(Fraction(match[1]) * UNITS[match[2]])
    if size < 1:
        raise InputError(f'"{text}": expected a size such as 0.3GB; units: {", ".join(UNITS)}')
    return size
