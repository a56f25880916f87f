"""The DiT families as data: which name plays which role, and what can absorb a smoothing factor.

What a table is made of stands in ``templates.py``.
"""

from __future__ import annotations

from ditpress.load.templates import (
    BlockList,
    Family,
    HeadTemplate,
    HiddenTemplate,
    ResidualTemplate,
    Role,
    SmoothTemplate,
    ValueTemplate,
)


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
    # The embedding of timestep and label keeps its width: only what it modulates is in the stream.
    residual=(
        ResidualTemplate(
            "pos_embed",
            rows=r"pos_embed\.proj|.*\.(norm1\.linear|attn1\.to_out\.0|ff\.net\.2)|proj_out_1",
            columns=r".*\.(attn1\.to_[qkv]|ff\.net\.0\.proj)|proj_out_2",
            norms=r".*\.(norm1\.norm|norm3)|norm_out",
            table="pos_embed.pos_embed",
        ),
    ),
)

# PixArt's modulation is one linear for all blocks plus a table per block: no block can fold into it alone.
# Its last layer adds the embedding of the timestep to a table of the stream's width, and its captions are
# reshaped to that width: the stream cannot be cut alone.
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
    residual=(
        ResidualTemplate(
            "pos_embed",
            rows=r"pos_embed\.proj|.*\.(norm1\.linear|attn2?\.to_out\.0|ff\.net\.2)|norm_out\.linear",
            columns=r".*\.(attn2?\.to_[qkv]|ff\.net\.0\.proj)|proj_out",
            norms=r".*\.(norm1\.norm|norm2)|norm_out\.norm",
            table="pos_embed.pos_embed",
            part=-1,
        ),
        ResidualTemplate(
            "context_embedder",
            rows=r"context_embedder|.*\.(norm1_context\.linear|attn\.to_add_out|ff_context\.net\.2)",
            columns=r".*\.(attn\.add_[qkv]_proj|ff_context\.net\.0\.proj)",
            norms=r".*\.(norm1_context\.norm|norm2_context)",
            part=-2,
        ),
    ),
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
    # Image and text are one sequence in the single blocks: one stream.
    residual=(
        ResidualTemplate(
            "x_embedder",
            rows=r"(x|context)_embedder|norm_out\.linear"
            r"|.*\.(norm1?(_context)?\.linear|attn\.to_(out\.0|add_out)|ff(_context)?\.net\.2|proj_out)",
            columns=r".*\.(attn\.(to_[qkv]|add_[qkv]_proj)|ff(_context)?\.net\.0\.proj|proj_mlp)|proj_out",
            norms=r".*\.(norm1?(_context)?\.norm|norm2(_context)?)|norm_out\.norm",
        ),
    ),
)

FAMILIES: tuple[Family, ...] = (_DIT, _PIXART, _SD3, _FLUX)
