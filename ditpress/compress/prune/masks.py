"""Which blocks of a group stay, as a choice that gradients can learn: TinyFusion's masks and their samples.

Fang et al. 2025, "TinyFusion: Diffusion Transformers Learned Shallow", sections 3.2 and 3.3. Pure
mathematics.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from ditpress.errors import InputError

LIMIT = 20_000  # masks of a group; 8 of 16 blocks are 12 870


def all_masks(keep: int, size: int, fixed: Collection[int] = ()) -> Tensor:
    """All ways to keep ``keep`` of ``size`` blocks, those of ``fixed`` too: float32 [C, size] of 0 and 1.

    Raises:
        InputError: more than ``LIMIT`` of them.
    """
    if comb(size - len(fixed), keep - len(fixed)) > LIMIT:
        raise InputError(
            f"{keep} of {size} blocks can be kept in {comb(size, keep)} ways, too many to learn one of them; "
            "make the groups smaller"
        )
    chosen = [kept for kept in combinations(range(size), keep) if set(fixed) <= set(kept)]
    masks = torch.zeros(len(chosen), size)
    for row, kept in enumerate(chosen):
        masks[row, list(kept)] = 1.0
    return masks


def gumbel_noise(count: int, generator: torch.Generator) -> Tensor:
    """``count`` samples of the Gumbel distribution: the largest of (logit + sample) is drawn by softmax."""
    uniform = torch.rand(count, generator=generator).clamp_(min=torch.finfo(torch.float32).tiny)
    # -log U is 0 where U rounds to 1.
    return -(-uniform.log()).clamp_(min=torch.finfo(torch.float32).tiny).log()


def sample_mask(logits: Tensor, masks: Tensor, noise: Tensor, tau: float) -> Tensor:
    """One mask [size], drawn with probability softmax(logits): exactly 0 and 1 forward.

    Backward it is ``softmax((logits + noise) / tau) @ masks``: the straight-through estimator of Jang et al.
    2017, "Categorical Reparameterization with Gumbel-Softmax", section 2.2.
    """
    soft = ((logits + noise) / tau).softmax(dim=-1)
    hard: Tensor = masks[soft.detach().argmax()]
    return hard + (soft - soft.detach()) @ masks
