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

SCALARS = [name for name, fmt in FORMATS.items() if fmt.vector_length == 1]


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
    """Random codes, scales and inputs of the given sizes."""
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**fmt.bits, (out_features, group * groups), generator=generator)
    scale = torch.rand(out_features, groups, generator=generator) * 0.1 + 0.01
    return Case(
        torch.randn(rows, group * groups, generator=generator) * magnitude,
        pack(codes.to(torch.uint8), fmt.bits),
        scale.half() if half else scale,
        fmt.codebook_tensor(),
        torch.randn(out_features, generator=generator) if bias else None,
    )


def weights64(case: Case) -> np.ndarray:
    """The weight in float64, ``[N, K]``, unpacked by numpy."""
    n, k = case.codes.shape[0], case.x.shape[-1]
    packed = case.codes.numpy()
    codes = (
        packed if case.codebook.shape[0] == 256 else np.stack([packed & 15, packed >> 4], -1).reshape(n, -1)
    )
    values = case.codebook.numpy().astype(np.float64)[codes[:, :k], 0]
    scale = case.scale.double().numpy()
    return values * np.repeat(scale, k // scale.shape[1], axis=1)


def expected64(case: Case, activation: str) -> tuple[np.ndarray, np.ndarray]:
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
    weights = weights64(case)
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
