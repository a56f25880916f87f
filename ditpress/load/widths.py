"""Widths that can be cut: the heads of an attention, the hidden units of an MLP, the residual stream.

What belongs together stands in the tables of ``families.py``. A head: its rows of q, k and v and its columns
of the linears that read the mix. A hidden unit: its row (with GEGLU one row in each half) of the first linear
and its column of the second. A channel of the stream: see :mod:`ditpress.load.residual`. The diffusers
classes have no config entry of their own for any of these, so a model that was cut is described by the sizes
that differ from those its config gives, by the name of the attention, the MLP, or the embedder that the
stream starts with::

    {"pos_embed": {"residual": 320}, "transformer_blocks.0.attn1": {"heads": 3, "head_dim": 32},
     "transformer_blocks.0.ff": {"hidden": 384}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import init_empty_weights
from diffusers import ConfigMixin
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.kernels.wrap import main_linear
from ditpress.load.families import FAMILIES
from ditpress.load.residual import ResidualGroup, note_residual, residual_group, rows_of
from ditpress.load.templates import Family, HeadTemplate, HiddenTemplate
from ditpress.load.weights import quiet_diffusers

Sizes = dict[str, dict[str, int]]


@dataclass(frozen=True)
class HeadGroup:
    """One attention with ``heads`` heads of ``head_dim`` channels, and the linears around it by full name.

    Channel ``h * head_dim + i`` is row of every query, key and value projection, and column of every reader.
    ``normed``: queries and keys are normalised over the channels of a head, which then cannot be cut.
    """

    name: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    values: tuple[str, ...]
    readers: tuple[str, ...]
    heads: int
    head_dim: int
    normed: bool

    @property
    def sizes(self) -> dict[str, int]:
        return {"heads": self.heads, "head_dim": self.head_dim}

    @property
    def linears(self) -> tuple[str, ...]:
        return (*self.queries, *self.keys, *self.values, *self.readers)


@dataclass(frozen=True)
class HiddenGroup:
    """One MLP with ``hidden`` units: unit j is row ``j + c * hidden`` of the producer, c < ``chunks`` (2 with
    a gate, as in GEGLU), and column ``start + j`` of the reader."""

    name: str
    producer: str
    reader: str
    hidden: int
    chunks: int
    start: int

    @property
    def readers(self) -> tuple[str, ...]:
        return (self.reader,)

    @property
    def sizes(self) -> dict[str, int]:
        return {"hidden": self.hidden}

    @property
    def linears(self) -> tuple[str, ...]:
        return (self.producer, self.reader)


Group = HeadGroup | HiddenGroup | ResidualGroup


def width_groups(transformer: nn.Module) -> list[Group]:
    """All of a known family whose width can be cut: streams, then attentions and MLPs block by block.

    Of an unknown family none.
    """
    table = _table(transformer)
    if table is None:
        return []
    streams = [residual_group(template, transformer) for template in table.residual]
    groups: list[Group] = [group for group in streams if group is not None]
    for block_list in dict.fromkeys(name for name, _ in table.smooth):
        for index, block in enumerate(getattr(transformer, block_list, ())):
            prefix = f"{block_list}.{index}"
            found: list[Group | None] = [_head_group(template, block, prefix) for template in table.heads]
            found += [_hidden_group(template, block, prefix) for template in table.hidden]
            groups += [group for group in found if group is not None]
    return groups


def cut_sizes(transformer: nn.Module) -> Sizes:
    """The sizes in ``transformer`` that differ from those of a new model with the same config."""
    groups = width_groups(transformer)
    if not groups or not isinstance(transformer, ConfigMixin):
        return {}
    with init_empty_weights(), quiet_diffusers():
        fresh: Any = type(transformer).from_config(transformer.config)
    full = {group.name: group.sizes for group in width_groups(fresh)}
    return {group.name: group.sizes for group in groups if full.get(group.name) != group.sizes}


def resize(transformer: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Make the widths of ``transformer`` smaller, as ``sizes`` says; which channels stay has no meaning.

    Weights become views of their first rows and columns: this is for models without numbers.

    Raises:
        InputError: ``sizes`` is malformed, names what is not there, or a size that is no smaller.
    """
    groups = {group.name: group for group in width_groups(transformer)}
    if not isinstance(sizes, Mapping):
        raise InputError(f"config.json: pruned is a {type(sizes).__name__}, expected sizes by name")
    for name, entry in sizes.items():
        if name not in groups:
            raise InputError(
                f"config.json: pruned names {name!r}, which is no attention, MLP or stream of "
                f"{type(transformer).__name__}; it belongs to another model"
            )
        _check(name, entry, groups[name].sizes)
    for name, entry in sizes.items():
        group = groups[name]
        if isinstance(group, HiddenGroup):
            _narrow(transformer, group.producer, rows=group.chunks * (entry["hidden"] - group.hidden))
            _narrow(transformer, group.reader, columns=entry["hidden"] - group.hidden)
            note_hidden(transformer, group, entry["hidden"])
            continue
        if isinstance(group, ResidualGroup):
            left = entry["residual"]
            for linear in group.rows:
                chunks = rows_of(transformer.get_submodule(linear)) // group.width
                _narrow(transformer, linear, rows=chunks * (left - group.width))
            for linear in group.columns:
                _narrow(transformer, linear, columns=left - group.width)
            note_residual(transformer, group, left, slice(left))
            continue
        change = entry["heads"] * entry["head_dim"] - group.heads * group.head_dim
        for linear in (*group.queries, *group.keys, *group.values):
            _narrow(transformer, linear, rows=change)
        for linear in group.readers:
            _narrow(transformer, linear, columns=change)
        note_heads(transformer, group, entry["heads"], entry["head_dim"])


def note_heads(transformer: nn.Module, group: HeadGroup, heads: int, head_dim: int) -> None:
    """Write the new sizes into the attention module, which computes with them."""
    attention: Any = transformer.get_submodule(group.name)
    attention.heads = heads
    attention.inner_dim = heads * head_dim
    if hasattr(attention, "inner_kv_dim"):
        attention.inner_kv_dim = heads * head_dim
    if hasattr(attention, "sliceable_head_dim"):
        attention.sliceable_head_dim = heads
    if hasattr(attention, "head_dim"):
        attention.head_dim = head_dim
    if getattr(attention, "scale_qk", False):
        attention.scale = head_dim**-0.5


def note_hidden(transformer: nn.Module, group: HiddenGroup, hidden: int) -> None:
    """Write the new size into the block of Flux that is its own MLP."""
    module: Any = transformer.get_submodule(group.name)
    if hasattr(module, "mlp_hidden_dim"):
        module.mlp_hidden_dim = hidden


def _check(name: str, entry: Any, full: Mapping[str, int]) -> None:
    if not isinstance(entry, Mapping) or set(entry) != set(full):
        raise InputError(
            f"config.json: pruned.{name} is {entry!r}, expected {' and '.join(full)}; it is damaged"
        )
    for field, most in full.items():
        value = entry[field]
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(
                f"config.json: pruned.{name}.{field} is {value!r}, expected an integer from 1 to {most}; "
                "it is damaged"
            )


def _narrow(transformer: nn.Module, name: str, rows: int = 0, columns: int = 0) -> None:
    module = transformer.get_submodule(name)
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise InputError(
            f"{name} is a {type(module).__name__}, expected a plain linear; prune before anything else"
        )
    height, width = module.weight.shape[0] + rows, module.weight.shape[1] + columns
    bias = None if module.bias is None else module.bias.detach()[:height]
    put_weight(module, module.weight.detach()[:height, :width], bias)


def put_weight(module: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear, or the convolution of an embedder, other numbers, of another shape."""
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[:2]
    else:
        module.out_features, module.in_features = weight.shape


def _table(transformer: nn.Module) -> Family | None:
    names = {cls.__name__ for cls in type(transformer).__mro__}
    return next((table for table in FAMILIES if names.intersection(table.classes)), None)


def _head_group(template: HeadTemplate, block: nn.Module, prefix: str) -> HeadGroup | None:
    """None without the attention, its values or a reader, or with fewer heads of keys than of queries."""
    attention: Any = _found(block, template.attention)
    queries, keys, values, readers = (
        _existing(block, names)
        for names in (template.queries, template.keys, template.values, template.readers)
    )
    heads = getattr(attention, "heads", None)
    if not (queries and keys and values and readers and isinstance(heads, int)):
        return None
    widths = {main_linear(block.get_submodule(name)).out_features for name in (*queries, *keys, *values)}
    if len(widths) != 1:
        return None
    (width,) = widths
    norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")

    def full(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{prefix}.{name}" for name in names)

    return HeadGroup(
        f"{prefix}.{template.attention}",
        full(queries),
        full(keys),
        full(values),
        full(readers),
        heads=heads,
        head_dim=width // heads,
        normed=any(getattr(attention, norm, None) is not None for norm in norms),
    )


def _hidden_group(template: HiddenTemplate, block: nn.Module, prefix: str) -> HiddenGroup | None:
    linears = (template.producer, template.reader)
    if _existing(block, linears) != linears:
        return None
    producer, reader = (main_linear(block.get_submodule(name)) for name in linears)
    start = 0
    if template.after is not None:
        start = main_linear(block.get_submodule(f"{template.after}.to_v")).out_features
    hidden = reader.in_features - start
    if hidden <= 0 or producer.out_features not in (hidden, 2 * hidden):
        return None
    return HiddenGroup(
        f"{prefix}.{template.mlp}" if template.mlp else prefix,
        f"{prefix}.{template.producer}",
        f"{prefix}.{template.reader}",
        hidden=hidden,
        chunks=producer.out_features // hidden,
        start=start,
    )


def _existing(block: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if _is_linear(_found(block, name)))


def _is_linear(module: nn.Module | None) -> bool:
    if module is None:
        return False
    try:
        main_linear(module)
    except InputError:
        return False
    return True


def _found(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:
        return None
