"""Problems for the op and its definition in numpy, written from the equations and not from the torch code."""

from __future__ import annotations

from dataclasses import dataclass

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

    def arguments(self, activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, str]:
        return self.x, self.codes, self.scale, self.codebook, self.bias, activation


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
    )


def values64(case: Case) -> np.ndarray:
    """The codebook values of the weight, int64 ``[N, K]``, unpacked by numpy."""
    (entries, length), rows = case.codebook.shape, case.codes.shape[0]
    packed = case.codes.numpy()
    if entries == 3:
        codes = (packed[..., None] // 3 ** np.arange(5) % 3).reshape(rows, -1)
    else:
        bits = entries.bit_length() - 1
        stream = np.unpackbits(packed, axis=1, bitorder="little")
        stream = stream[:, : stream.shape[1] // bits * bits].reshape(rows, -1, bits)
        codes = (stream.astype(np.int64) << np.arange(bits)).sum(-1)
    k = case.x.shape[-1]
    return case.codebook.numpy().astype(np.int64)[codes[:, : k // length]].reshape(rows, k)


def weights64(case: Case, fold: bool = False) -> np.ndarray:
    """The weight in float64, ``[N, K]``."""
    values, scale = values64(case), case.scale.numpy().astype(np.float32)
    group = values.shape[1] // scale.shape[1]
    if not fold:
        return values * np.repeat(scale.astype(np.float64), group, axis=1)
    factors, s1 = fold_factors(scale, case.codebook.numpy())
    w8 = np.clip((values * np.repeat(factors, group, axis=1) + 64) // 128, -128, 127)
    return w8 * s1.astype(np.float64)


def fold_factors(scale: np.ndarray, codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``gs`` int64 ``[N, G]`` and ``s1`` float32 ``[N, 1]``, in numpy's float32."""
    largest = np.float32(np.abs(codebook.astype(np.int64)).max())
    s1 = np.abs(scale).max(axis=1, keepdims=True) * largest / np.float32(127)
    safe = np.where(s1 == 0, np.float32(1), s1)
    return np.where(s1 == 0, 0, np.rint(np.float32(128) * scale / safe)).astype(np.int64), s1


def expected64(case: Case, activation: str, fold: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The result in float64 ``[M, N]``, and the sum of magnitudes that rounding errors are relative to."""
    x = case.x.numpy()
    if activation == "int8":
        # Scale and codes are float32 by definition; everything after them is exact here.
        amax = np.abs(x).max(axis=1, keepdims=True)
        safe = np.where(amax > 0, amax, np.float32(1))
        q = np.clip(np.rint(x * (np.float32(127) / safe)), -127, 127)
        rows = q.astype(np.float64) * (amax / np.float32(127))
    else:
        rows = x.astype(np.float64)
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
