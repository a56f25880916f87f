"""Weights of every coding and the op's definition, in numpy with whole numbers and extended precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ditpress.kernels.cpu.weights import PackedWeight

CODINGS = [
    (2, 1), (3, 1), (4, 1), (16, 1), (64, 1), (256, 1),
    (4, 2), (16, 2), (64, 2), (256, 2), (4, 4), (16, 4), (64, 4), (256, 4),
]  # fmt: skip
"""(entries, vector length) of codebooks."""


def pack_rows(codes: np.ndarray, entries: int) -> np.ndarray:
    """Codes ``[N, C]`` to stored bytes: five a byte for 3 entries, else a little-endian bit stream."""
    rows, count = codes.shape
    if entries == 3:
        padded = np.zeros((rows, -(-count // 5) * 5), np.int64)
        padded[:, :count] = codes
        return (padded.reshape(rows, -1, 5) @ 3 ** np.arange(5)).astype(np.uint8)
    bits = entries.bit_length() - 1
    stream = (codes[:, :, None] >> np.arange(bits) & 1).reshape(rows, -1).astype(np.uint8)
    return np.packbits(stream, axis=1, bitorder="little")


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 ``a * b + c`` with one rounding (but for ties of the extended format: one case in 2**40)."""
    wide = np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float32)


@dataclass
class CodedCase:
    """A weight in its stored form, the whole numbers that it stands for, and an input."""

    codes: np.ndarray  # stored
    values: np.ndarray  # int64 [N, K]
    scale: np.ndarray  # float16 or float32 [N, G]
    codebook: np.ndarray  # int8 [entries, d]
    x: np.ndarray  # float32 [M, K]
    bias: np.ndarray  # float32 [N]

    def packed(self, activation: str, path: str, fold_scales: bool) -> PackedWeight:
        codes, scale, codebook = map(torch.from_numpy, (self.codes, self.scale, self.codebook))
        k = self.x.shape[1]
        return PackedWeight(k, codes, scale, codebook, activation, path, fold_scales=fold_scales)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """8-bit weights ``[N, K]`` and one scale ``[N, 1]`` a channel in place of the group scales."""
        scale = self.scale.astype(np.float32)
        largest = np.float32(np.abs(self.codebook.astype(np.int64)).max())
        one = np.abs(scale).max(axis=1, keepdims=True) * largest / np.float32(127)
        used = np.where(one > 0, one, np.float32(1))
        factor = np.where(one > 0, np.rint(np.float32(128) * scale / used), 0).astype(np.int64)
        factor = np.repeat(factor, self.x.shape[1] // scale.shape[1], axis=1)
        return np.clip((self.values * factor + 64) // 128, -128, 127), one

    def expected_int8(self, fold_scales: bool) -> np.ndarray:
        """The bits that every kernel gives."""
        values, scale = self.values, self.scale.astype(np.float32)
        if fold_scales and scale.shape[1] > 1:
            values, scale = self.folded()
        amax = np.abs(self.x).max(axis=1, keepdims=True)
        safe = np.where(amax > 0, amax, np.float32(1))
        q = np.rint(self.x * (np.float32(127) / safe)).astype(np.int64)
        group = self.x.shape[1] // scale.shape[1]
        total = np.zeros((self.x.shape[0], self.bias.shape[0]), np.float32)
        for g in range(scale.shape[1]):
            part = slice(g * group, (g + 1) * group)
            total = fma((q[:, part] @ values[:, part].T).astype(np.float32), scale[:, g], total)
        return fma(total, amax / np.float32(127), self.bias)

    def weights64(self) -> np.ndarray:
        scale = self.scale.astype(np.float64)
        return self.values * np.repeat(scale, self.x.shape[1] // scale.shape[1], axis=1)


def make_coded_case(
    coding: tuple[int, int], rows: int, out_features: int, group: int, groups: int, *, half: bool, seed: int
) -> CodedCase:
    """Random codes, codebook, scales (some negative, one zero) and input; d divides group * groups."""
    entries, d = coding
    random = np.random.default_rng(seed)
    k = group * groups
    codes = random.integers(0, entries, (out_features, k // d))
    codebook = random.integers(-128, 128, (entries, d)).astype(np.int8)
    scale = random.uniform(-0.05, 0.1, (out_features, groups)).astype(np.float16 if half else np.float32)
    scale[-1, -1] = 0
    return CodedCase(
        pack_rows(codes, entries),
        codebook.astype(np.int64)[codes].reshape(out_features, k),
        scale,
        codebook,
        random.standard_normal((rows, k), np.float32),
        random.standard_normal(out_features, np.float32),
    )
