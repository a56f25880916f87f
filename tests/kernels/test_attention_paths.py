"""Attention of the C library on every path of this machine, against float64."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qlinear_cases import supported_paths
from torch import Tensor

from ditpress.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.library_path() is None, reason="the C++ kernels are not built")

PATHS = supported_paths()
MASKS = ["none", "keys", "queries", "full"]


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float, bf16: bool, path: str
) -> tuple[int, Tensor]:
    """The status and the result of the library's attention; a mask has four dims, each 1 or full."""
    library = cpu.load()
    assert library is not None
    batch, queries, row = q.shape
    y = torch.empty_like(q)
    strides = None
    if mask is not None:
        strides = (ctypes.c_int64 * 4)(
            *(0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride(), strict=True))
        )
    status = library.ditpress_attention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), None if mask is None else mask.data_ptr(), strides,
        batch, heads, queries, k.shape[1], row // heads, scale, int(bf16), y.data_ptr(), path.encode(), 1,
    )  # fmt: skip
    return status, y


def expected64(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.double().unflatten(-1, (heads, -1)).transpose(1, 2)

    scores = scale * split(q) @ split(k).transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.double()
    return (scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.one_of(st.integers(1, 40), st.sampled_from([64, 77, 130])),
    width=st.one_of(st.integers(1, 40), st.sampled_from([64, 72, 128, 160])),
    mask_kind=st.sampled_from(MASKS),
    bf16=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    path: str,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    width: int,
    mask_kind: str,
    bf16: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, queries, heads * width, generator=generator)
    k, v = torch.randn(2, batch, keys, heads * width, generator=generator)
    mask = None
    if mask_kind != "none":
        shape = {"keys": (batch, 1, 1, keys), "queries": (1, 1, queries, 1)}.get(
            mask_kind, (batch, heads, queries, keys)
        )
        mask = torch.randn(shape, generator=generator)
        if keys > 1 and mask_kind != "queries":
            mask[..., keys // 2 :] = -torch.inf if seed % 2 else -1e4
    status, y = attend(q, k, v, mask, heads, width**-0.5, bf16, path)
    assert status == 0
    error = (y - expected64(q, k, v, mask, heads, width**-0.5)).abs().max()
    assert error <= (5e-2 if bf16 else 1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_keys_of_a_mask_must_lie_side_by_side(path: str) -> None:
    q = torch.randn(1, 4, 8)
    mask = torch.zeros(1, 1, 4, 8)[..., ::2]
    status, _ = attend(q, q, q, mask, 1, 1.0, False, path)
    assert status != 0
    library = cpu.load()
    assert library is not None
    assert "a mask lie 2 apart" in cpu.last_error(library)
