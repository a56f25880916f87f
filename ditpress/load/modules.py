"""Exchanging modules inside a model."""

from __future__ import annotations

from torch import nn


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is a child below ``root``, also where several parents share it.

    ``new`` may hold ``old``, as a wrapper does.
    """
    new.train(old.training)
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would hide a second name
            if child is old:
                setattr(parent, name, new)
