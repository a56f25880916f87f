"""The block of DiT and PixArt with norm, modulation, gates and residuals in its low-bit linears."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn

from ditpress.fused.attention import attend, attends
from ditpress.fused.call import Gate, Modulation, fits, unwatched
from ditpress.fused.feedforward import feed_forward, feeds_forward


class FusedBlock(BasicTransformerBlock):
    """``BasicTransformerBlock`` of the types ada_norm_zero (DiT) and ada_norm_single (PixArt), fused.

    Others run as diffusers has them, on attentions and feed-forwards that may be fused themselves.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        x = hidden_states
        parts = None
        if not cross_attention_kwargs and self._is_fusable(
            x, attention_mask, encoder_hidden_states, encoder_attention_mask
        ):
            parts = self._modulation_of(x, timestep, class_labels)
        if parts is None:
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                class_labels,
                added_cond_kwargs,
            )
        # Chunks are strided, and a patch embedding leaves its tokens so: made dense once, not by every op.
        x = x.contiguous()
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (part.contiguous() for part in parts)
        zero = self.norm_type == "ada_norm_zero"
        epsilon = self.norm1.norm.eps if zero else self.norm1.eps
        x = attend(self.attn1, x, None, attention_mask, Modulation(shift, scale, epsilon), Gate(gate, x))
        if self.attn2 is not None:
            one = torch.ones((1, x.shape[-1]))
            x = attend(self.attn2, x, encoder_hidden_states, encoder_attention_mask, gate=Gate(one, x))
        epsilon = self.norm3.eps if zero else self.norm2.eps
        return feed_forward(self.ff, x, Modulation(shift_mlp, scale_mlp, epsilon), Gate(gate_mlp, x))

    def _is_fusable(
        self, x: Tensor, mask: Tensor | None, context: Tensor | None, context_mask: Tensor | None
    ) -> bool:
        if self.norm_type == "ada_norm_zero":
            if type(self.norm1) is not AdaLayerNormZero or self.norm1.emb is None or self.attn2 is not None:
                return False
            norms = (self.norm1.norm, self.norm3)
        elif self.norm_type == "ada_norm_single":
            norms = (self.norm1, self.norm2)
        else:
            return False
        return (
            all(type(norm) is nn.LayerNorm and norm.weight is None for norm in norms)
            and self.pos_embed is None
            and self._chunk_size is None
            and not self.only_cross_attention
            and unwatched(self.norm1, *norms, self.attn1, self.attn2, self.ff)
            and attends(self.attn1, x, None, mask)
            and (self.attn2 is None or attends(self.attn2, x, context, context_mask))
            and feeds_forward(self.ff, x)
        )

    def _modulation_of(
        self, x: Tensor, timestep: Tensor | None, class_labels: Tensor | None
    ) -> tuple[Tensor, ...] | None:
        """Shift, scale and gate of the attention, then of the feed-forward; None where they do not fit ``x``.

        Each is ``[B or 1, K]`` (ada_norm_zero) or ``[B, 1, K]``.
        """
        if self.norm_type == "ada_norm_zero":
            norm = self.norm1
            embedding = norm.emb(timestep, class_labels, hidden_dtype=x.dtype)
            rows = norm.linear(norm.silu(embedding))
        else:
            assert timestep is not None  # diffusers passes the modulation of all blocks under this name
            rows = self.scale_shift_table[None] + timestep.reshape(x.shape[0], 6, -1)
        if not fits(rows) or rows.shape[0] not in (1, x.shape[0]):
            return None
        return rows.chunk(6, dim=1)
