"""Diffusers' plain softmax attention on ``torch.ops.ditpress.attention``."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor

from ditpress.fused.call import (
    Gate,
    Modulation,
    are_linears,
    fits,
    linear,
    linears,
    rounds_input,
    runs_plainly,
    unwatched,
)
from ditpress.kernels.attention import attention


class FusedAttnProcessor:
    """``AttnProcessor2_0`` on our kernels.

    Args:
        plain: the processor that takes the calls that cannot run fused.
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if not args and not kwargs and attends(attn, hidden_states, encoder_hidden_states, attention_mask):
            return attend(attn, hidden_states, encoder_hidden_states, attention_mask)
        return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)


def attends(attn: Any, x: Tensor, context: Tensor | None, mask: Tensor | None) -> bool:
    """Whether ``attend`` computes what diffusers would: a fused processor, low-bit projections, no extras."""
    return (
        type(attn) is Attention
        and isinstance(attn.processor, FusedAttnProcessor)
        and runs_plainly(attn, x)
        and (context is None or (fits(context) and context.dim() == 3))
        and (mask is None or (fits(mask) and mask.dim() == 3))
        and _is_simple(attn)
        and are_linears(attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
        and unwatched(attn.to_q, attn.to_k, attn.to_v, *attn.to_out)
    )


def _is_simple(attn: Any) -> bool:
    """Queries, keys and values of equal width, and nothing between projections, softmax and output."""
    return (
        all(
            getattr(attn, name) is None
            for name in ("norm_q", "norm_k", "norm_cross", "group_norm", "spatial_norm", "add_k_proj")
        )
        and attn.to_out is not None
        and attn.inner_dim == attn.inner_kv_dim
        and attn.inner_dim % attn.heads == 0
        and attn.scale_qk
        and not attn.fused_projections
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )


def attend(
    attn: Any,
    x: Tensor,
    context: Tensor | None,
    mask: Tensor | None,
    modulation: Modulation | None = None,
    gate: Gate | None = None,
) -> Tensor:
    """The output of ``attn`` where ``attends`` holds.

    Args:
        attn: the diffusers attention.
        x: float32 ``[B, T, K]``, for the queries; modulated before if so asked.
        context: float32 ``[B, S, C]`` for keys and values; None: ``x``.
        mask: added to the scores, float32 ``[B, 1 or T, S]``, as diffusers passes it on; or None.
        modulation, gate: before the projections and after the last one; or None.
    """
    projections = (attn.to_q, attn.to_k, attn.to_v)
    if context is None:
        q, k, v = linears(x, projections, modulation)
    else:
        (q,) = linears(x, projections[:1], modulation)
        k, v = linears(context, projections[1:], None)
    if mask is not None:
        mask = attn.prepare_attention_mask(mask, k.shape[1], k.shape[0])
        mask = mask.view(k.shape[0], attn.heads, -1, mask.shape[-1])
    bf16 = all(rounds_input(module) for module in projections)
    mixed = attention(q, k, v, mask, attn.heads, (q.shape[-1] // attn.heads) ** -0.5, bf16)
    return linear(mixed, attn.to_out[0], gate=gate)
