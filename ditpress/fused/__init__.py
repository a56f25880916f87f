"""Diffusers blocks on the fused ops, in torch: a switch on a transformer that holds low-bit layers.

``fuse`` gives blocks, feed-forwards and attention processors another ``forward``, nothing else: modules,
parameters, names and ``save_pretrained`` stay as they are, and ``unfuse`` undoes it. Every call decides anew
whether it can run fused; where it cannot, diffusers' own code runs (:mod:`ditpress.fused.call`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from ditpress.fused.attention import FusedAttnProcessor
from ditpress.fused.block import FusedBlock
from ditpress.fused.feedforward import FusedFeedForward
from ditpress.kernels.linear import QuantizedLinear

__all__ = ["FusedAttnProcessor", "FusedBlock", "FusedFeedForward", "fuse", "is_fused", "unfuse", "unfused"]

# Only diffusers' own classes: what derives from them may compute something else.
_CLASSES: dict[type[Any], type[Any]] = {BasicTransformerBlock: FusedBlock, FeedForward: FusedFeedForward}
_PLAIN: dict[type[Any], type[Any]] = {fused: plain for plain, fused in _CLASSES.items()}


def fuse(transformer: nn.Module) -> int:
    """Let the parts of ``transformer`` that hold low-bit layers run on the fused ops, in place.

    On the CPU, in float32 and without gradients, they then call ``torch.ops.ditpress.qlinear_fused`` and
    ``torch.ops.ditpress.attention``, with the numbers of the unfused modules up to what those ops state:
    sums in another order, and q, k, v and probabilities in bfloat16 where the projections round their
    inputs to int8 anyway. Every other call runs as before. Joint attention (SD3, Flux) stays diffusers' own.

    Returns:
        How many modules were switched; those that already were are not counted.
    """
    switched = 0
    for module in transformer.modules():
        if not any(isinstance(part, QuantizedLinear) for part in module.modules()):
            continue
        if type(module) in _CLASSES:
            module.__class__ = _CLASSES[type(module)]
            switched += 1
        elif type(module) is Attention and type(module.processor) is AttnProcessor2_0:
            cast(Any, module).processor = FusedAttnProcessor(module.processor)
            switched += 1
    return switched


def unfuse(transformer: nn.Module) -> int:
    """Undo ``fuse``. Returns how many modules were switched back."""
    switched = 0
    for module in transformer.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
            switched += 1
        elif isinstance(module, Attention) and isinstance(module.processor, FusedAttnProcessor):
            module.processor = module.processor.plain
            switched += 1
    return switched


def is_fused(transformer: nn.Module) -> bool:
    """Whether some part of ``transformer`` is switched to the fused ops."""
    return any(
        type(module) in _PLAIN
        or (isinstance(module, Attention) and isinstance(module.processor, FusedAttnProcessor))
        for module in transformer.modules()
    )


@contextlib.contextmanager
def unfused(transformer: nn.Module) -> Iterator[None]:
    """Diffusers' own code within the context, for tracing; what was fused is fused again after it."""
    was_fused = is_fused(transformer)
    unfuse(transformer)
    try:
        yield
    finally:
        if was_fused:
            fuse(transformer)
