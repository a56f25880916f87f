"""The rows of the table, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comparison import rows

DRAWN_GUIDED: frozenset[str] = frozenset({"original", "recipe"})  # rows with a recognised share


@dataclass(frozen=True)
class Row(rows.Row):
    """One model of the table; ``of``: the row that a plain rounding or an ablation belongs to.

    Attributes:
        peer: what another tool is asked for, as in ``peers``.
        bits: nominal bits of a block weight.
    """

    peer: str = ""
    bits: float = 0.0


ORIGINAL = Row("original", "original")


def _recipe(name: str, recipe: str, bits: float, *overrides: str, label: str = "") -> Row:
    return Row(name, "recipe", recipe=recipe, overrides=overrides, label=label, bits=bits)


RECIPES: tuple[Row, ...] = (
    _recipe("w8a8", "w8a8", 8),
    _recipe("w4a8", "w4a8", 4),
    _recipe("w4a8-fp", "w4a8-fp", 4),
    _recipe("fp4", "fp4", 4),
    _recipe("svdquant", "svdquant", 4, label="svdquant, INT4 g64"),
    _recipe(
        "svdquant-fp4",
        "svdquant",
        4,
        "quantize.weights.format=fp4-e2m1",
        "quantize.weights.group=16",
        "quantize.activations=fp4-e2m1",
        label="svdquant, FP4 g16",
    ),
    _recipe("mixed-4", "mixed", 4, "mixed.bits=4.0", label="mixed, 4 bits"),
    _recipe("mixed-3", "mixed", 3, "mixed.bits=3.2", label="mixed, 3.2 bits"),
    _recipe("vq-3bit", "vq", 3, "vq.bits=3", label="vq, 3 bits"),
    _recipe("vq-2bit", "vq", 2, "vq.bits=2", label="vq, 2 bits"),
    _recipe("ternary", "ternary", 1.6),
)

PLAIN: tuple[Row, ...] = tuple(
    Row(f"rtn-{row.name}", "plain", of=row.name, label=f"plain RTN as {row.title}", bits=row.bits)
    for row in RECIPES
)


def _peer(name: str, peer: str, bits: float, label: str) -> Row:
    return Row(name, "peer", peer=peer, label=label, bits=bits)


PEERS: tuple[Row, ...] = (
    _peer("ort-rtn-64", "onnxruntime rtn 64", 4, "ONNX Runtime MatMulNBits RTN, block 64"),
    _peer("ort-rtn-128", "onnxruntime rtn 128", 4, "ONNX Runtime MatMulNBits RTN, block 128"),
    _peer("ort-hqq-64", "onnxruntime hqq 64", 4, "ONNX Runtime MatMulNBits HQQ, block 64"),
    _peer("ort-hqq-128", "onnxruntime hqq 128", 4, "ONNX Runtime MatMulNBits HQQ, block 128"),
    _peer("bnb-nf4", "bitsandbytes nf4", 4, "bitsandbytes NF4, block 64"),
    _peer("bnb-fp4", "bitsandbytes fp4", 4, "bitsandbytes FP4, block 64"),
    _peer("torchao-int4", "torchao int4 64", 4, "torchao Int4WeightOnly, group 64"),
    _peer("torchao-intx4", "torchao intx4 64", 4, "torchao IntxWeightOnly int4, group 64"),
    _peer("torchao-int8", "torchao int8", 8, "torchao Int8WeightOnly"),
    _peer("torchao-int8-dynamic", "torchao int8-dynamic", 8, "torchao Int8DynamicActivationInt8Weight"),
)


def _ablation(of: str, name: str, *overrides: str, without: Sequence[str] = ()) -> Row:
    row = next(row for row in RECIPES if row.name == of)
    slug = name.replace(" ", "-").replace(",", "")
    return Row(
        f"{of}-{slug}",
        "ablation",
        of=of,
        recipe=row.recipe,
        overrides=(*row.overrides, *overrides),
        without=tuple(without),
        label=f"{row.title}: {name}",
        bits=row.bits,
    )


ABLATIONS: tuple[Row, ...] = (
    _ablation("w8a8", "without smoothing", without=["smooth"]),
    _ablation("w8a8", "without grid search", "smooth.alpha=0.5"),
    _ablation(
        "w8a8",
        "without GPTQ",
        "quantize.weights.rounding=nearest",
        "quantize.modulation.rounding=nearest",
    ),
    _ablation("w8a8", "inputs in float", "quantize.activations=none"),
    _ablation("w4a8", "without smoothing", without=["smooth"]),
    _ablation("w4a8", "without grid search", "smooth.alpha=0.5"),
    _ablation(
        "w4a8", "with a low-rank branch", "quantize.low_rank={rank: 32, method: svdquant, iterations: 100}"
    ),
    _ablation(
        "w4a8", "without GPTQ", "quantize.weights.rounding=nearest", "quantize.modulation.rounding=nearest"
    ),
    _ablation("w4a8-fp", "without low-rank branch", "quantize.low_rank=null"),
    _ablation("w4a8-fp", "without GPTQ", "quantize.weights.rounding=nearest"),
    _ablation("w4a8-fp", "free scale ratios", "quantize.weights.scale_ratios=free"),
    _ablation("fp4", "without rotation", without=["rotate"]),
    _ablation("fp4", "all inputs rotated", "rotate.roles=[qkv, attention_out, mlp_in, mlp_out]"),
    _ablation("fp4", "without principal directions", without=["subspace"]),
    _ablation(
        "fp4", "as published", "rotate.roles=[qkv, attention_out, mlp_in, mlp_out]", without=["subspace"]
    ),
    _ablation("fp4", "as published, without rotation", without=["rotate", "subspace"]),
    _ablation("fp4", "without GPTQ", "quantize.weights.rounding=nearest"),
    _ablation("fp4", "E2M1 only", "quantize.weights.format=fp4-e2m1"),
    _ablation("svdquant", "without smoothing", without=["smooth"]),
    _ablation("svdquant", "without grid search", "smooth.alpha=0.5"),
    _ablation("svdquant", "without low-rank branch", "quantize.low_rank=null"),
    _ablation("svdquant", "without principal directions", without=["subspace"]),
    _ablation("svdquant", "nor smoothing", without=["smooth", "subspace"]),
    _ablation("svdquant", "without GPTQ", "quantize.weights.rounding=nearest"),
    _ablation("svdquant", "signed after GELU", "quantize.unsigned_after_gelu=false"),
    _ablation("mixed-4", "without tuning", without=["tune"]),
    _ablation("vq-2bit", "with block calibration too", "vq.blocks={}"),
    _ablation(
        "vq-2bit", "block calibration instead of end-to-end tuning", "vq.blocks={}", "vq.finetune=null"
    ),
    _ablation("vq-2bit", "without tuning", "vq.finetune=null"),
    _ablation("vq-2bit", "nor GPTQ", "vq.finetune=null", "vq.rounding=nearest"),
    _ablation(
        "vq-2bit", "nor channel weights", "vq.finetune=null", "vq.rounding=nearest", "vq.weigh_channels=false"
    ),
    _ablation(
        "vq-2bit",
        "as published",
        "vq.rounding=nearest",
        "vq.weigh_channels=false",
        "vq.blocks={candidates: 2}",
        "vq.finetune=null",
    ),
    _ablation(
        "ternary", "without training", "ternary.training.steps=1", "ternary.training.learning_rate=1e-9"
    ),
    _ablation("ternary", "without norm after modulation", "ternary.norm=false"),
    _ablation("ternary", "least-squares scales", "ternary.scales=least-squares"),
)

ROWS: tuple[Row, ...] = (ORIGINAL, *RECIPES, *PLAIN, *PEERS, *ABLATIONS)


def select(patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match a pattern (* and ?), with what they need before them; all without one.

    Raises:
        ValueError: a pattern that matches no row.
    """
    wanted = rows.matching([row.name for row in ROWS], patterns)
    wanted |= {row.of for row in ROWS if row.kind == "plain" and row.name in wanted}
    return [row for row in ROWS if row.name in wanted or row is ORIGINAL]
