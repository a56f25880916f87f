"""Modules whose buffers are a storage format: casting the model must not convert them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn


class FixedBuffers(nn.Module):
    """Own buffers keep their dtype: ``module.half()`` and the like move but never convert them.

    Checkpoints store them in that dtype as well.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, kept in before.items():
            moved = cast(Tensor, getattr(self, name))
            if moved.dtype != kept.dtype:
                setattr(self, name, kept.to(moved.device))
        return self
