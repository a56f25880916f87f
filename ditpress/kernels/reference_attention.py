"""The definition of the op ``ditpress::attention``, in plain torch on any device.

For every sample and head, with scores s, all sums in float32 and in any order:

    s = scale * q kᵀ + mask;  p = exp(s - max s);  out = (p v) / sum p

With ``bf16`` q, k and v are rounded to bfloat16 first, and p before it multiplies v; the sum over p is that
of the numbers before their rounding; kernels may take p from an exponential that is exact to 1e-4, a
fortieth of a bfloat16 step. A row whose scores are all -inf is NaN, as with a plain softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**22  # scores held at a time: bounds the memory, not the result


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float, bf16: bool
) -> Tensor:
    """See :func:`ditpress.kernels.attention.attention`; arguments are taken as checked."""
    batch, queries, width = q.shape
    keys = k.shape[1]
    q, k, v = (_round(t, bf16).unflatten(2, (heads, width // heads)).transpose(1, 2) for t in (q, k, v))
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
    out = torch.empty((batch, queries, heads, width // heads), dtype=torch.float32, device=q.device)
    step = max(1, _CHUNK // max(1, queries * keys))
    for sample in range(batch):
        for head in range(0, heads, step):
            part = slice(head, head + step)
            scores = scale * (q[sample, part] @ k[sample, part].transpose(1, 2))
            if mask is not None:
                scores += mask[sample, part]
            p = torch.exp(scores - scores.amax(dim=2, keepdim=True))
            y = (_round(p, bf16) @ v[sample, part]) / p.sum(dim=2, keepdim=True)
            out[sample, :, part] = y.transpose(0, 1)
    return out.flatten(2)


def _round(x: Tensor, bf16: bool) -> Tensor:
    return x.bfloat16().float() if bf16 else x
