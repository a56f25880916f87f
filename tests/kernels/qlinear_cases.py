"""Problems for the op and its definition in numpy, written from the equations and not from the torch code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels import cpu
from ditpress.kernels.cpu.weights import PackedWeight
from ditpress.kernels.formats import FORMATS
from ditpress.kernels.packing import pack

ALL = list(FORMATS)
LIBRARY = [name for name, fmt in FORMATS.items() if fmt.vector_length == 1 and fmt.entries in (16, 256)]
"""What the C++ kernels take; the definition takes all."""


@dataclass
class Case:
    """Arguments of one call of the op."""

    x: Tensor
    codes: Tensor
    scale: Tensor
    codebook: Tensor
    bias: Tensor | None
    table: Tensor | None = None

    def arguments(self, activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, str]:
        """Without the table, which comes after ``fold_scales``."""
        return self.x, self.codes, self.scale, self.codebook, self.bias, activation

    def all_arguments(self, activation: str, fold_scales: bool = False) -> tuple[Any, ...]:
        return *self.arguments(activation), fold_scales, self.table


def make_case(
    name: str,
    rows: int,
    out_features: int,
    group: int,
    groups: int,
    *,
    seed: int = 0,
    half: bool = False,
    bias: bool = True,
    magnitude: float = 1.0,
) -> Case:
    """Random codes, scales and inputs of the given sizes; a random codebook where the format has none."""
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(seed)
    count = group * groups // fmt.vector_length
    codes = torch.randint(0, fmt.entries, (out_features, count), generator=generator)
    own = torch.randint(-128, 128, (fmt.entries, fmt.vector_length), generator=generator).to(torch.int8)
    scale = torch.rand(out_features, groups, generator=generator) * 0.1 + 0.01
    return Case(
        torch.randn(rows, group * groups, generator=generator) * magnitude,
        pack(codes.to(torch.uint8), fmt.entries),
        scale.half() if half else scale,
        own if fmt.codebook is None else fmt.codebook_tensor(),
        torch.randn(out_features, generator=generator) if bias else None,
        None if fmt.tables == 1 else (torch.arange(out_features) % fmt.tables).to(torch.uint8),
    )


def values64(case: Case) -> np.ndarray:
    """The codebook values of the weight, int64 ``[N, K]``, unpacked by numpy."""
    (entries, length), rows = case.codebook.shape, case.codes.shape[0]
    entries = entries if case.table is None else 16
    packed = case.codes.numpy()
    if entries == 3:
        codes = (packed[..., None] // 3 ** np.arange(5) % 3).reshape(rows, -1)
    else:
        bits = entries.bit_length() - 1
        stream = np.unpackbits(packed, axis=1, bitorder="little")
        stream = stream[:, : stream.shape[1] // bits * bits].reshape(rows, -1, bits)
        codes = (stream.astype(np.int64) << np.arange(bits)).sum(-1)
    k = case.x.shape[-1]
    if case.table is not None:
        codes = codes + 16 * case.table.numpy().astype(np.int64)[:, None]
    return case.codebook.numpy().astype(np.int64)[codes[:, : k // length]].reshape(rows, k)


def weights64(case: Case, fold: bool = False) -> np.ndarray:
    """The weight in float64, ``[N, K]``."""
    values, scale = values64(case), case.scale.numpy().astype(np.float32)
    group = values.shape[1] // scale.shape[1]
    if not fold:
        return values * np.repeat(scale.astype(np.float64), group, axis=1)
    factors, s1 = fold_factors(scale, largest(case))
    w8 = np.clip((values * np.repeat(factors, group, axis=1) + 64) // 128, -128, 127)
    return w8 * s1.astype(np.float64)


def largest(case: Case) -> np.ndarray:
    """The largest magnitude in the table of each channel, float32 ``[N, 1]``."""
    tables = np.abs(case.codebook.numpy().astype(np.float32))
    rows = [0] * case.codes.shape[0] if case.table is None else case.table.tolist()
    tables = tables.reshape((1, -1) if case.table is None else (-1, 16))
    return tables.max(axis=1)[rows][:, None]


def fold_factors(scale: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``gs`` int64 ``[N, G]`` and ``s1`` float32 ``[N, 1]``, in numpy's float32."""
    s1 = np.abs(scale).max(axis=1, keepdims=True) * largest / np.float32(127)
    safe = np.where(s1 == 0, np.float32(1), s1)
    return np.where(s1 == 0, 0, np.rint(np.float32(128) * scale / safe)).astype(np.int64), s1


E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)  # OCP Microscaling Formats 1.0, section 5.3.3


def rounded64(x: np.ndarray, activation: str, group: int) -> np.ndarray:
    """The rounded input in float64: the nearest of all values that a format has, by comparing with each.

    Only the scale and the scaled input are float32, as the definition has them. Ties go to the entry of even
    index: in an ascending list of magnitudes that is the even mantissa.
    """
    grids: dict[str, list[float]] = {
        "int8": [float(value) for value in range(128)],
        "int4": [float(value) for value in range(8)],
        "uint4": [float(value) for value in range(16)],
        "fp4-e2m1": [2.0 * value for value in E2M1],
        "fp8-e4m3": torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double().tolist(),
    }
    if activation == "none":
        return x.astype(np.float64)
    grid = np.array(grids[activation])
    if activation in ("int8", "fp8-e4m3"):
        group = x.shape[1]
    parts = x.reshape(x.shape[0], -1, group)
    if activation == "uint4":
        parts = np.maximum(parts, np.float32(0))
    amax = np.abs(parts).max(axis=2, keepdims=True)
    safe = np.where(amax > 0, amax, np.float32(1))
    top = np.float32(grid[-1])
    scaled = (parts * (top / safe)).astype(np.float64)
    distance = np.abs(np.abs(scaled)[..., None] - grid)
    nearest = distance.min(axis=-1, keepdims=True) == distance
    even = nearest & (np.arange(len(grid)) % 2 == 0)
    index = np.where(even.any(axis=-1), even.argmax(axis=-1), nearest.argmax(axis=-1))
    unit = np.float32(512) if activation == "fp8-e4m3" else np.float32(1)
    step = (amax / (top * unit)).astype(np.float64) * unit
    return (np.sign(scaled) * grid[index] * step).reshape(x.shape)


def expected64(case: Case, activation: str, fold: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The result in float64 ``[M, N]``, and the sum of magnitudes that rounding errors are relative to."""
    # Scale and codes are float32 by definition; everything after them is exact here.
    rows = rounded64(case.x.numpy(), activation, case.x.shape[1] // case.scale.shape[1])
    weights = weights64(case, fold and activation == "int8")
    bias = 0.0 if case.bias is None else case.bias.double().numpy()
    return rows @ weights.T + bias, np.abs(rows) @ np.abs(weights).T + np.abs(bias)


def supported_paths() -> list[str]:
    """The instruction sets that this machine can run, each asked for by name."""
    if cpu.library_path() is None:
        return []
    case = make_case("int4", 1, 1, 4, 1)
    found = []
    for path in cpu.ISAS[:-1]:  # without the reference
        try:
            PackedWeight(4, case.codes, case.scale, case.codebook, "int8", path)
        except InputError:
            continue
        found.append(path)
    return found
