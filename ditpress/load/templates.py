"""What the table of a DiT family is made of: records of names, with no module behind them yet.

Names are those of diffusers. A pattern is a regular expression for the whole name; the first that fits wins.
A smooth template holds for every block of ``blocks``; it is used where all the modules it names exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What a linear does in the model."""

    QKV = "qkv"
    ATTENTION_OUT = "attention_out"
    MLP_IN = "mlp_in"
    MLP_OUT = "mlp_out"
    MODULATION = "modulation"
    EMBEDDER = "embedder"
    FINAL = "final"
    OTHER = "other"


@dataclass(frozen=True)
class SmoothTemplate:
    """A SmoothGroup with names relative to its block."""

    linears: tuple[str, ...]
    absorb: Literal["modulation", "rows"]
    source: str
    shift_chunk: int | None = None
    scale_chunk: int | None = None
    chunks: int = 1


@dataclass(frozen=True)
class ValueTemplate:
    """A ValueGroup with names relative to its block; of ``sources`` and ``linears`` those that exist."""

    attention: str  # the attention module, which knows its heads
    sources: tuple[str, ...]
    linears: tuple[str, ...]


@dataclass(frozen=True)
class HeadTemplate:
    """A HeadGroup with names relative to its block; of the linears those that exist.

    ``readers`` read the heads side by side from their first column on.
    """

    attention: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    values: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class HiddenTemplate:
    """A HiddenGroup with names relative to its block; ``mlp`` is empty where the block itself is the MLP.

    ``after`` is the attention whose channels the reader has in front of the hidden units.
    """

    mlp: str
    producer: str
    reader: str
    after: str | None = None


@dataclass(frozen=True)
class ResidualTemplate:
    """A ResidualGroup by patterns, for full names; of the modules those that exist.

    ``name`` is the embedder that the stream starts with, ``table`` a buffer added to it. ``rows`` are the
    modules whose outputs have the channels of the stream, side by side as often as they fit. ``part`` is the
    place of the stream among the tensors that a block gives, counted from the last; None: all are of it.
    """

    name: str
    rows: str
    columns: str
    norms: str
    table: str | None = None
    part: int | None = None


@dataclass(frozen=True)
class BlockList:
    """A list of blocks that run one after the other, and what in the model depends on which are there.

    Attributes:
        name: attribute of the transformer.
        count: field of its config that says how many they are.
        indices: fields of its config that name some of them by index.
        last_stays: the last block is built unlike the others: no other can stand in its place.
        first_lends: submodule of the first block that the transformer itself calls too.
    """

    name: str
    count: str = "num_layers"
    indices: tuple[str, ...] = ()
    last_stays: bool = False
    first_lends: str | None = None


@dataclass(frozen=True)
class Family:
    """One family: the diffusers classes that belong to it and the tables about them."""

    name: str
    classes: tuple[str, ...]
    roles: tuple[tuple[str, Role], ...]
    blocks: tuple[BlockList, ...]  # in the order they run
    smooth: tuple[tuple[str, tuple[SmoothTemplate, ...]], ...] = ()  # (block list, templates)
    shared: tuple[str, ...] = ()  # submodules that hold the same tensors in every block
    values: tuple[ValueTemplate, ...] = ()  # in the blocks of every list of ``smooth``
    readers: tuple[tuple[str, ...], ...] = ()  # linears of a block that read one tensor
    heads: tuple[HeadTemplate, ...] = ()  # attention whose heads can be cut, in every list of ``smooth``
    hidden: tuple[HiddenTemplate, ...] = ()  # MLPs whose hidden units can be cut, likewise
    residual: tuple[ResidualTemplate, ...] = ()  # streams of hidden states whose channels can be cut
