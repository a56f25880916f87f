"""The DiT families as data: which name plays which role, and what can absorb a smoothing factor.

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


def _modulated(linears: tuple[str, ...], source: str, shift: int, scale: int, chunks: int) -> SmoothTemplate:
    return SmoothTemplate(linears, "modulation", source, shift, scale, chunks)


def _qkv(*attentions: str, names: str = "to_q to_k to_v") -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{attention}.{name}" for name in names.split()) for attention in attentions)


def _values(attention: str, joint: bool = False) -> ValueTemplate:
    """Joint attention mixes the values of image and text, and each stream reads the mix."""
    sources, linears = ("to_v", "add_v_proj"), ("to_out.0", "to_add_out")
    return ValueTemplate(
        attention,
        tuple(f"{attention}.{name}" for name in sources[: 1 + joint]),
        tuple(f"{attention}.{name}" for name in linears[: 1 + joint]),
    )


def _heads(attention: str, joint: bool = False, readers: tuple[str, ...] = ()) -> HeadTemplate:
    """Joint attention has queries, keys and values of two streams, which go together head by head."""

    def names(*own: str) -> tuple[str, ...]:
        return tuple(f"{attention}.{name}" for name in own[: 1 + joint])

    return HeadTemplate(
        attention,
        names("to_q", "add_q_proj"),
        names("to_k", "add_k_proj"),
        names("to_v", "add_v_proj"),
        readers or names("to_out.0", "to_add_out"),
    )


def _hidden(mlp: str) -> HiddenTemplate:
    return HiddenTemplate(mlp, f"{mlp}.net.0.proj", f"{mlp}.net.2")


LINEAR_OWNERS = r"norm\w*|adaln_single"
"""Modules of diffusers with a linear of their own called ``linear``, which is no wrapper's."""


_DIT = Family(
    name="dit",
    classes=("DiTTransformer2DModel",),
    roles=(
        (r".*\.attn1\.to_[qkv]", Role.QKV),
        (r".*\.attn1\.to_out\.0", Role.ATTENTION_OUT),
        (r".*\.ff\.net\.0\.proj", Role.MLP_IN),
        (r".*\.ff\.net\.2", Role.MLP_OUT),
        (r".*\.norm1\.linear", Role.MODULATION),
        (r".*\.norm1\.emb\..*", Role.EMBEDDER),
        (r"proj_out_[12]", Role.FINAL),
    ),
    blocks=(BlockList("transformer_blocks", first_lends="norm1.emb"),),  # conditions the last layer
    # AdaLayerNormZero: shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp. ff.net.2 is left out:
    # a GELU stands before it, which no factor passes.
    smooth=(
        (
            "transformer_blocks",
            (
                _modulated(("attn1.to_q", "attn1.to_k", "attn1.to_v"), "norm1.linear", 0, 1, 6),
                _modulated(("ff.net.0.proj",), "norm1.linear", 3, 4, 6),
                SmoothTemplate(("attn1.to_out.0",), "rows", "attn1.to_v"),
            ),
        ),
    ),
    shared=("norm1.emb",),
    values=(_values("attn1"),),
    readers=_qkv("attn1"),
    heads=(_heads("attn1"),),
    hidden=(_hidden("ff"),),
)

# PixArt's modulation is one linear for all blocks plus a table per block: no block can fold into it alone.
_PIXART = Family(
    name="pixart",
    classes=("PixArtTransformer2DModel",),
    roles=(
        (r".*\.attn[12]\.to_[qkv]", Role.QKV),
        (r".*\.attn[12]\.to_out\.0", Role.ATTENTION_OUT),
        (r".*\.ff\.net\.0\.proj", Role.MLP_IN),
        (r".*\.ff\.net\.2", Role.MLP_OUT),
        (r"adaln_single\.linear", Role.MODULATION),
        (r"adaln_single\.emb\..*", Role.EMBEDDER),
        (r"caption_projection\..*", Role.EMBEDDER),
        (r"proj_out", Role.FINAL),
    ),
    blocks=(BlockList("transformer_blocks"),),
    smooth=(
        (
            "transformer_blocks",
            (
                SmoothTemplate(("attn1.to_out.0",), "rows", "attn1.to_v"),
                SmoothTemplate(("attn2.to_out.0",), "rows", "attn2.to_v"),
            ),
        ),
    ),
    values=(_values("attn1"), _values("attn2")),
    readers=(*_qkv("attn1"), *_qkv("attn2", names="to_k to_v")),  # attn2: queries from the image
    heads=(_heads("attn1"), _heads("attn2")),
    hidden=(_hidden("ff"),),
)

_JOINT_ROLES = (
    (r".*\.attn2?\.(to_[qkv]|add_[qkv]_proj)", Role.QKV),
    (r".*\.attn2?\.(to_out\.0|to_add_out)", Role.ATTENTION_OUT),
    (r".*\.ff(_context)?\.net\.0\.proj", Role.MLP_IN),
    (r".*\.ff(_context)?\.net\.2", Role.MLP_OUT),
    (r".*blocks\.\d+\.norm(1|1_context)?\.linear", Role.MODULATION),
    (r"(time_text_embed|context_embedder|x_embedder)\b.*", Role.EMBEDDER),
)

# Joint attention mixes the values of image and text, and its output feeds to_out.0 and to_add_out: dividing
# the rows of one value projection alone would be wrong, so these have no group. The text stream of the last
# SD3 block has no output: its norm is AdaLayerNormContinuous (scale first, two chunks).
_SD3 = Family(
    name="sd3",
    classes=("SD3Transformer2DModel",),
    roles=(*_JOINT_ROLES, (r"norm_out\.linear|proj_out", Role.FINAL)),
    # The text stream of the last block has no output (context_pre_only).
    blocks=(BlockList("transformer_blocks", indices=("dual_attention_layers",), last_stays=True),),
    smooth=(
        (
            "transformer_blocks",
            (
                _modulated(("attn.to_q", "attn.to_k", "attn.to_v"), "norm1.linear", 0, 1, 6),
                _modulated(("ff.net.0.proj",), "norm1.linear", 3, 4, 6),
                # SD3.5's dual attention: AdaLayerNormZeroX with three more chunks, image tokens only.
                _modulated(("attn.to_q", "attn.to_k", "attn.to_v"), "norm1.linear", 0, 1, 9),
                _modulated(("ff.net.0.proj",), "norm1.linear", 3, 4, 9),
                _modulated(("attn2.to_q", "attn2.to_k", "attn2.to_v"), "norm1.linear", 6, 7, 9),
                SmoothTemplate(("attn2.to_out.0",), "rows", "attn2.to_v"),
                _modulated(
                    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "norm1_context.linear", 0, 1, 6
                ),
                _modulated(
                    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "norm1_context.linear", 1, 0, 2
                ),
                _modulated(("ff_context.net.0.proj",), "norm1_context.linear", 3, 4, 6),
            ),
        ),
    ),
    values=(_values("attn", joint=True), _values("attn2")),
    readers=(*_qkv("attn", "attn2"), *_qkv("attn", names="add_q_proj add_k_proj add_v_proj")),
    heads=(_heads("attn", joint=True), _heads("attn2")),
    hidden=(_hidden("ff"), _hidden("ff_context")),
)

_FLUX = Family(
    name="flux",
    classes=("FluxTransformer2DModel",),
    roles=(
        *_JOINT_ROLES,
        (r"single_transformer_blocks\.\d+\.proj_mlp", Role.MLP_IN),
        (r"single_transformer_blocks\.\d+\.proj_out", Role.MLP_OUT),  # reads attention and MLP side by side
        (r"norm_out\.linear|proj_out", Role.FINAL),
    ),
    blocks=(
        BlockList("transformer_blocks"),
        BlockList("single_transformer_blocks", count="num_single_layers"),
    ),
    smooth=(
        (
            "transformer_blocks",
            (
                _modulated(("attn.to_q", "attn.to_k", "attn.to_v"), "norm1.linear", 0, 1, 6),
                _modulated(
                    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "norm1_context.linear", 0, 1, 6
                ),
                _modulated(("ff.net.0.proj",), "norm1.linear", 3, 4, 6),
                _modulated(("ff_context.net.0.proj",), "norm1_context.linear", 3, 4, 6),
            ),
        ),
        (
            "single_transformer_blocks",
            (_modulated(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "norm.linear", 0, 1, 3),),
        ),
    ),
    # In single blocks the values go to proj_out beside the MLP: no attn.to_out, no group.
    values=(_values("attn", joint=True),),
    # Single blocks have a proj_mlp, double ones have none.
    readers=(
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        *_qkv("attn", names="add_q_proj add_k_proj add_v_proj"),
    ),
    # Double blocks have to_out, single ones proj_out, which reads the heads and then the hidden units.
    heads=(_heads("attn", joint=True), _heads("attn", readers=("proj_out",))),
    hidden=(_hidden("ff"), _hidden("ff_context"), HiddenTemplate("", "proj_mlp", "proj_out", after="attn")),
)

FAMILIES: tuple[Family, ...] = (_DIT, _PIXART, _SD3, _FLUX)
