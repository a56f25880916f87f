"""The op ``torch.ops.ditpress.attention``: softmax attention over several heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.cpu import isa
from ditpress.kernels.cpu.attention import run_attention
from ditpress.kernels.reference_attention import attention_reference

_library = torch.library.Library("ditpress", "FRAGMENT")
_library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, int heads, float scale, bool bf16) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float, bf16: bool
) -> Tensor:
    """``softmax(scale * q kᵀ + mask) v`` for every head.

    Args:
        q: float32 ``[B, T, H * dh]``, the heads side by side.
        k, v: float32 ``[B, S, H * dh]``.
        mask: float32, added to the scores: four dimensions, each 1 or that of ``[B, H, T, S]``; or None.
        heads: H.
        scale: usually ``dh ** -0.5``.
        bf16: q, k, v and the probabilities may be rounded to bfloat16, sums stay in float32: faster on CPUs
            with bfloat16 dot products; others compute in float32.

    Returns:
        float32 ``[B, T, H * dh]``. :mod:`ditpress.kernels.reference_attention` defines it.

    Raises:
        InputError: tensors that do not fit each other.
    """
    return torch.ops.ditpress.attention(q, k, v, mask, heads, scale, bf16)


def check_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float, bf16: bool
) -> None:
    """Raise InputError unless the arguments of ``attention`` fit each other."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dtype != torch.float32 or tensor.dim() != 3:
            raise InputError(
                f"attention {name} is {tensor.dtype} {list(tensor.shape)}, "
                "expected torch.float32 [B, tokens, heads * width]"
            )
    if heads < 1 or q.shape[2] < 1 or q.shape[2] % heads:
        raise InputError(f"attention: {heads} heads do not divide the width {q.shape[2]} of q")
    expected = (q.shape[0], k.shape[1], q.shape[2])
    if k.shape != expected or v.shape != expected or k.shape[1] < 1:
        raise InputError(
            f"attention k is {list(k.shape)} and v {list(v.shape)}, expected both "
            f"[{q.shape[0]}, S, {q.shape[2]}] with S >= 1 as q is {list(q.shape)}"
        )
    if not math.isfinite(scale):
        raise InputError(f"attention scale is {scale}, expected a finite number")
    if mask is None:
        return
    full = (q.shape[0], heads, q.shape[1], k.shape[1])
    if (
        mask.dtype != torch.float32
        or mask.dim() != 4
        or any(size != 1 and size != most for size, most in zip(mask.shape, full, strict=True))
    ):
        raise InputError(
            f"attention mask is {mask.dtype} {list(mask.shape)}, expected torch.float32, four dimensions, "
            f"each 1 or that of [B, H, T, S] = {list(full)}"
        )


def _default(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float, bf16: bool
) -> Tensor:
    check_attention(q, k, v, mask, heads, scale, bf16)
    return attention_reference(q, k, v, mask, heads, scale, bf16)


def _cpu(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float, bf16: bool
) -> Tensor:
    check_attention(q, k, v, mask, heads, scale, bf16)
    if isa() == "reference":
        return attention_reference(q, k, v, mask, heads, scale, bf16)
    return run_attention(q, k, v, mask, heads, scale, bf16)


def _fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float, bf16: bool
) -> Tensor:
    check_attention(q, k, v, mask, heads, scale, bf16)
    return q.new_empty(q.shape)


_library.impl("attention", _default, "CompositeExplicitAutograd")
_library.impl("attention", _cpu, "CPU")
torch.library.register_fake("ditpress::attention", _fake, lib=_library)
