"""Attention on the C++ kernels."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.cpu import isa, last_error, load


def run_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    scale: float,
    bf16: bool,
    path: str | None = None,
) -> Tensor:
    """``ditpress::attention`` of checked arguments, on torch's threads.

    Args:
        path: instruction set to run on, default :func:`ditpress.kernels.cpu.isa`.
    """
    library = load()
    if library is None:
        raise InputError("the C++ kernels were not built: reinstall ditpress with a compiler")
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    y = torch.empty_like(q)
    strides = None
    if mask is not None:  # dimensions of length 1 are broadcast
        steps = [0 if size == 1 else step for size, step in zip(mask.shape, mask.stride(), strict=True)]
        if steps[3] not in (0, 1):
            mask = mask.contiguous()
            steps = [0 if size == 1 else step for size, step in zip(mask.shape, mask.stride(), strict=True)]
        strides = (ctypes.c_int64 * 4)(*steps)
    batch, queries, width = q.shape
    status = library.ditpress_attention(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        None if mask is None else mask.data_ptr(),
        strides,
        batch,
        heads,
        queries,
        k.shape[1],
        width // heads,
        scale,
        int(bf16),
        y.data_ptr(),
        (path or isa()).encode(),
        torch.get_num_threads(),
    )
    if status:
        raise InputError(last_error(library))
    return y
