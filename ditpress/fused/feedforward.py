"""Diffusers' feed-forward with the GELU in its first low-bit linear."""

from __future__ import annotations

from typing import Any

from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from ditpress.fused.call import Gate, Modulation, are_linears, linear, runs_plainly, unwatched


class FusedFeedForward(FeedForward):
    """``FeedForward`` whose tanh GELU runs in the op of the linear before it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not args and not kwargs and feeds_forward(self, hidden_states):
            return feed_forward(self, hidden_states)
        return super().forward(hidden_states, *args, **kwargs)


def feeds_forward(module: nn.Module, x: Tensor) -> bool:
    """Whether ``feed_forward`` computes what diffusers would: two linears around a tanh GELU."""
    if type(module) is not FusedFeedForward or not runs_plainly(module, x):
        return False
    first, last = module.net[0], module.net[2]
    return (
        type(first) is GELU
        and first.approximate == "tanh"
        and all(type(module.net[i]) is nn.Dropout for i in range(len(module.net)) if i not in (0, 2))
        and are_linears(first.proj, last)
        and unwatched(*module.net, first.proj)
    )


def feed_forward(
    module: Any, x: Tensor, modulation: Modulation | None = None, gate: Gate | None = None
) -> Tensor:
    """The output ``[B, T, N]`` of ``module`` where ``feeds_forward`` holds, with what stands around it."""
    hidden = linear(x, module.net[0].proj, modulation=modulation, gelu=True)
    return linear(hidden, module.net[2], gate=gate)
