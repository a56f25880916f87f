"""Cutting: the rows and columns of all that a head, a channel or a hidden unit runs through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditpress.load.residual import ResidualGroup, note_residual
from ditpress.load.widths import HeadGroup, HiddenGroup, note_heads, note_hidden, put_weight


@dataclass(frozen=True)
class KeptHeads:
    """What stays of an attention: bool [heads, head_dim] for the channels of queries and keys, and of values.

    A head that goes has none; all others have equally many of both.
    """

    group: HeadGroup
    queries: Tensor
    values: Tensor

    @property
    def heads(self) -> int:
        return int(self.values.any(dim=1).sum())

    @property
    def head_dim(self) -> int:
        return int(self.values.sum()) // self.heads


@dataclass(frozen=True)
class KeptHidden:
    """What stays of an MLP: bool [hidden]."""

    group: HiddenGroup
    units: Tensor


@dataclass(frozen=True)
class KeptResidual:
    """What stays of a stream: bool [width]."""

    group: ResidualGroup
    channels: Tensor


Kept = KeptHeads | KeptHidden | KeptResidual


@dataclass(frozen=True)
class Masks:
    """What stays of one linear or convolution: bool, of its output and of its input channels."""

    rows: Tensor
    columns: Tensor


def masks_of(transformer: nn.Module, kept: Sequence[Kept]) -> dict[str, Masks]:
    """What stays of every linear in ``kept``, by name. One linear may read two groups side by side (Flux)."""
    masks: dict[str, Masks] = {}
    for name in dict.fromkeys(name for one in kept for name in one.group.linears):
        height, width = _layer(transformer, name).weight.shape[:2]
        masks[name] = Masks(torch.ones(height, dtype=torch.bool), torch.ones(width, dtype=torch.bool))
    for one in kept:
        if isinstance(one, KeptHidden):
            masks[one.group.producer].rows.copy_(one.units.repeat(one.group.chunks))
            start = one.group.start
            masks[one.group.reader].columns[start : start + one.group.hidden] = one.units
            continue
        if isinstance(one, KeptResidual):
            for name in one.group.rows:
                rows = masks[name].rows
                rows.copy_(one.channels.repeat(len(rows) // one.group.width))
            for name in one.group.columns:
                masks[name].columns.copy_(one.channels)
            continue
        for name in (*one.group.queries, *one.group.keys):
            masks[name].rows.copy_(one.queries.flatten())
        for name in one.group.values:
            masks[name].rows.copy_(one.values.flatten())
        for name in one.group.readers:
            masks[name].columns[: one.values.numel()] = one.values.flatten()
    return masks


@torch.no_grad()
def cut(transformer: nn.Module, kept: Sequence[Kept]) -> None:
    """Cut out of ``transformer`` all that does not stay in ``kept``; the groups are those that it has now.

    Without rounding the result computes what the uncut model computes with the weights of all that goes at
    zero, and with mean and variance of the norms over those channels of the stream that stay. Attention
    divides its scores by the root of head_dim: the rows of queries are multiplied by the root of new over
    old.
    """
    for name, mask in masks_of(transformer, kept).items():
        layer = _layer(transformer, name)
        rows, columns = (part.nonzero()[:, 0].to(layer.weight.device) for part in (mask.rows, mask.columns))
        weight = layer.weight.detach()
        if not bool(mask.rows.all()):
            weight = weight.index_select(0, rows)
        if not bool(mask.columns.all()):
            weight = weight.index_select(1, columns)
        bias = None if layer.bias is None else layer.bias.detach().index_select(0, rows)
        put_weight(layer, weight.contiguous(), bias)
    for one in kept:
        if isinstance(one, KeptHidden):
            note_hidden(transformer, one.group, int(one.units.sum()))
            continue
        if isinstance(one, KeptResidual):
            note_residual(transformer, one.group, int(one.channels.sum()), one.channels.nonzero()[:, 0])
            continue
        factor = math.sqrt(one.head_dim / one.group.head_dim)
        for name in one.group.queries if factor != 1.0 else ():
            linear = _layer(transformer, name)
            for tensor in (linear.weight, linear.bias):
                if tensor is not None:
                    overwrite(tensor, tensor.double() * factor)
        note_heads(transformer, one.group, one.heads, one.head_dim)


def overwrite(tensor: Tensor, values: Tensor) -> None:
    """Put ``values`` in the place of what ``tensor`` holds, and in no more bits than that is stored in.

    Weights of a checkpoint in 16 bits come as float32 that float16 holds exactly, and are stored so again: a
    rounding to 11 bits, far below what pruning changes, keeps a pruned layer from growing.
    """
    if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
        largest = torch.finfo(torch.float16).max
        values = values.clamp(-largest, largest).half()
    tensor.copy_(values)


def _layer(transformer: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layer = transformer.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d), "checked before"
    return layer
