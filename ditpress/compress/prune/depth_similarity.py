"""How little a block changes what passes through it: the block influence of ShortGPT.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", eq. 1:
BI = 1 - E[x_in · x_out / (‖x_in‖ ‖x_out‖)], the mean over tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditpress.calibrate.blocks import device_of
from ditpress.calibrate.calibration import moved
from ditpress.calibrate.calls import Call
from ditpress.compress.prune.blocks import entering
from ditpress.progress import track


@torch.no_grad()
def block_influence(transformer: nn.Module, calls: Sequence[Call], names: Sequence[str]) -> dict[str, float]:
    """1 - cosine of what enters and what leaves each block, the mean over tokens and calls.

    The tokens of both streams of a joint block count alike.

    Args:
        transformer: answers the calls, once each.
        calls: recorded calls.
        names: full names of the blocks.
    """
    sums: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)

    def compare(
        name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        for out, entered in zip(*entering(name, block, args, kwargs, output), strict=True):
            if isinstance(out, Tensor):
                cosine = nn.functional.cosine_similarity(entered.double(), out.double(), dim=-1)
                sums[name] += float((1 - cosine).sum())
                tokens[name] += cosine.numel()

    handles = [
        transformer.get_submodule(name).register_forward_hook(partial(compare, name), with_kwargs=True)
        for name in names
    ]
    try:
        for call in track(calls, "similarity of blocks"):
            transformer(**moved(call.kwargs, device_of(transformer)))
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name] / tokens[name] for name in names}
