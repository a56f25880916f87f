"""What is ranked: equal parts of the channels between some linears; each stays or goes as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ditpress.load.residual import ResidualGroup
from ditpress.load.widths import Group, HeadGroup, HiddenGroup

Kind = Literal["heads", "queries", "values", "hidden", "residual"]


@dataclass(frozen=True)
class Units:
    """``count`` units of ``size`` channels each, in the attention, MLP or stream ``name``.

    Channel c is row ``c + k * count * size`` (k up to as many chunks as there are) of every linear of
    ``rows``, and column ``start + c`` of every linear of ``columns``. To remove a unit is to set its part of
    ``gates`` to zero: its columns of what reads it, or, for channels of queries and keys, the rows of the
    queries; the rest of the unit then has no effect (but for a channel of the stream on the mean and variance
    of the norms).

    ``kind``: heads; the channels of queries and keys, which meet in a dot product; those of values; hidden
    units; channels of the residual stream.
    """

    name: str
    kind: Kind
    count: int
    size: int
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    gates: tuple[str, ...]
    start: int = 0


def head_units(group: HeadGroup) -> Units:
    """The heads of an attention."""
    rows = (*group.queries, *group.keys, *group.values)
    return Units(group.name, "heads", group.heads, group.head_dim, rows, group.readers, group.readers)


def channel_units(group: HeadGroup) -> tuple[Units, Units]:
    """The channels of all heads: those of queries and keys, and those of values."""
    channels = group.heads * group.head_dim
    queries = Units(
        group.name, "queries", channels, 1, (*group.queries, *group.keys), (), gates=group.queries
    )
    values = Units(group.name, "values", channels, 1, group.values, group.readers, gates=group.readers)
    return queries, values


def hidden_units(group: HiddenGroup) -> Units:
    """The hidden units of an MLP."""
    producer, reader = (group.producer,), (group.reader,)
    return Units(group.name, "hidden", group.hidden, 1, producer, reader, reader, group.start)


def residual_units(group: ResidualGroup) -> Units:
    """The channels of a stream."""
    return Units(group.name, "residual", group.width, 1, group.rows, group.columns, group.columns)


def all_units(group: Group) -> tuple[Units, ...]:
    """All that can be ranked in ``group``."""
    if isinstance(group, HiddenGroup):
        return (hidden_units(group),)
    if isinstance(group, ResidualGroup):
        return (residual_units(group),)
    return (head_units(group), *(() if group.normed else channel_units(group)))
