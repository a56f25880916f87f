"""The residual stream: the channels of the hidden states that run from the embedder through all blocks.

A channel of it is a row of all that writes into the stream (the embedder, the linears behind attentions and
MLPs) and of all that shifts, scales or gates it (rows c, c + width, ... of a modulation of several chunks), a
column of all that reads the normalised stream, and an entry of the norms and of the table of positions. The
embedding of timestep and label that modulates is no part of it, and keeps its width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.kernels.wrap import main_linear
from ditpress.load.templates import ResidualTemplate


@dataclass(frozen=True)
class ResidualGroup:
    """One stream of ``width`` channels, named by the embedder it starts with, and what is around it.

    Channel c is row ``c + k * width`` of every module of ``rows``, k up to as many chunks as it has; column c
    of every linear of ``columns``; entry c of every norm, and of the last dimension of ``table``. ``part`` is
    the place of the stream among the tensors that a block gives, counted from the last; None: all are of it.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    norms: tuple[str, ...]
    table: str | None
    part: int | None
    width: int

    @property
    def sizes(self) -> dict[str, int]:
        return {"residual": self.width}

    @property
    def linears(self) -> tuple[str, ...]:
        return (*self.rows, *self.columns)


def residual_group(template: ResidualTemplate, transformer: nn.Module) -> ResidualGroup | None:
    """None where the modules of ``template`` do not all have one width."""
    modules = dict(transformer.named_modules())

    def named(pattern: str) -> tuple[str, ...]:
        return tuple(name for name in modules if re.fullmatch(pattern, name))

    rows, columns, norms = (named(part) for part in (template.rows, template.columns, template.norms))
    widths = {main_linear(modules[name]).in_features for name in columns}
    widths |= {modules[name].normalized_shape[-1] for name in norms}
    if template.table is not None:
        widths.add(transformer.get_buffer(template.table).shape[-1])
    if len(widths) != 1:
        return None
    (width,) = widths
    if any(rows_of(modules[name]) % width for name in rows):
        return None
    return ResidualGroup(template.name, rows, columns, norms, template.table, template.part, width)


def rows_of(module: nn.Module) -> int:
    """Output channels of a convolution, or of the linear inside all wrappers."""
    return module.out_channels if isinstance(module, nn.Conv2d) else main_linear(module).out_features


def note_residual(transformer: nn.Module, group: ResidualGroup, width: int, kept: slice | Tensor) -> None:
    """Make norms and table as narrow as the layers around them are now.

    A table of positions that a formula gave is one no more: from now on it is stored with the model, and
    inputs of another size, for which the formula would be asked again, are refused.

    Args:
        transformer: changed in place.
        group: the stream as it was.
        width: what is left of it.
        kept: the channels that are left.
    """
    for name in group.norms:
        norm: Any = transformer.get_submodule(name)
        norm.normalized_shape = (width,)
        for key in ("weight", "bias"):
            values = getattr(norm, key)
            if values is not None:
                setattr(norm, key, nn.Parameter(values.detach()[kept], requires_grad=False))
    if group.table is None:
        return
    owner, _, key = group.table.rpartition(".")
    module: Any = transformer.get_submodule(owner)
    module.register_buffer(key, getattr(module, key)[..., kept], persistent=True)
    if module.pos_embed_max_size is None and _refuse_other_sizes not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_refuse_other_sizes)


def _refuse_other_sizes(module: Any, args: tuple[Tensor, ...]) -> None:
    size = tuple(part // module.patch_size for part in args[0].shape[-2:])
    if size != (module.height, module.width):
        raise InputError(
            f"input of {size[0]} x {size[1]} patches: channels of the position embedding were pruned, which "
            f"then is that of {module.height} x {module.width} patches only; give inputs of that size"
        )
