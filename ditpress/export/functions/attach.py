"""Function protos, and which of them the nodes of a graph need."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from ditpress.errors import InputError
from ditpress.export.functions.attention import ATTENTION_BODY
from ditpress.export.functions.bodies import body_of, output_names
from ditpress.export.functions.kinds import (
    ATTENTION,
    COLUMNS,
    CONTRIB_DOMAIN,
    DOMAIN,
    KINDS,
    MASK,
    OPSET,
    Variant,
)

MIN_BLOCK, MAX_BLOCK = 16, 256  # block sizes MatMulNBits takes: powers of two in this range
PLAIN = Variant()
_ATTRIBUTES = ("N", "K", "group_size", "fold_scales", "prologue", "epsilon", "epilogue")


def function_proto(name: str, variant: Variant = PLAIN) -> onnx.FunctionProto:
    """The model-local function of node kind ``name``.

    Inputs: x float32 ``[..., K]``; codes uint8 ``[N, width]``; scale float16 or float32
    ``[N, K / group_size]``; codebook int8 ``[entries * vector_length]``; bias float32 ``[N]``; of coding
    "4M", whose codebook has several tables of 16, table uint8 ``[N]``; with the prologue shift and modulation
    float32 ``[B, 1, K]``; with the epilogue "gate_residual" gate ``[B, 1, N]`` and residual ``[B, T, N]``.
    With columns shift, modulation and gate are ``[B, ...]`` of any width, and K or N values from a column on
    count. Output: float32 ``[..., N]``, or its columns in pieces. Attributes: those that every node carries;
    ``block_size`` for affine 4-bit codes; ``columns`` with those; ``splits`` with several outputs.

    Group scales are taken as they are, also where ``fold_scales`` asks the kernel to round them.

    Raises:
        InputError: no such node kind, or one that has no function without a table.
    """
    kind = KINDS.get(name)
    if kind is None or not (variant.table or kind.coding in ("4", "8")):
        raise InputError(
            f"no ONNX function {name!r} with overload {variant.overload!r}: expected one of "
            f"{', '.join(KINDS)}, those of other codings than 4 and 8 with a table"
        )
    blocked = kind.coding == "4" and not variant.table
    attributes = (
        *_ATTRIBUTES,
        *(("block_size",) if blocked else ()),
        *((COLUMNS,) if variant.columns else ()),
        *(("splits",) if variant.outputs > 1 else ()),
    )
    contrib = f', "{CONTRIB_DOMAIN}": 1' if blocked else ""
    return _parse(
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}{contrib}]>\n'
        f"{name} <{', '.join(attributes)}> ({', '.join(variant.inputs(kind))}) => "
        f"({', '.join(output_names(variant))})\n{{{body_of(kind, variant)}}}",
        variant.overload,
    )


def attention_proto(overload: str = "") -> onnx.FunctionProto:
    """The function of the Attention node: softmax(scale * q kᵀ + mask) v for every head.

    Inputs: q float32 ``[B, T, H * d]``, k and v ``[B, S, H * d]``; with the overload "mask" also mask, added
    to the scores, four dimensions that broadcast to ``[B, H, T, S]``. Output: ``[B, T, H * d]``. Attributes:
    ``num_heads`` (H), ``scale``; ``bf16`` allows a kernel to round q, k, v and the probabilities to bfloat16,
    the function does not.

    Raises:
        InputError: an overload other than "" and "mask".
    """
    if overload not in ("", MASK):
        raise InputError(f"no ONNX function Attention with overload {overload!r}: expected '' or {MASK!r}")
    masked = overload == MASK
    return _parse(
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n'
        f"{ATTENTION} <num_heads, scale, bf16> (q, k, v{', mask' if masked else ''}) => (y)\n"
        f"{{{ATTENTION_BODY.format(scores='Add (products, mask)' if masked else 'Identity (products)')}}}",
        overload,
    )


def _parse(text: str, overload: str) -> onnx.FunctionProto:
    function = onnx.parser.parse_function(text)
    function.overload = overload
    return function


def block_size(group_size: int) -> int | None:
    """The largest block of MatMulNBits that divides ``group_size``; None where there is none."""
    block = min(group_size & -group_size, MAX_BLOCK)
    return block if block >= MIN_BLOCK else None


def attach_functions(model: ir.Model) -> None:
    """Give every ``ditpress`` node its overload and block size, and ``model`` the functions they use.

    Functions of the domain that no node uses are dropped. The codebook of each node must be a constant: which
    body a node needs depends on its values.
    """
    protos: dict[ir.OperatorIdentifier, onnx.FunctionProto] = {}
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type == ATTENTION:
            node.overload = MASK if len(node.inputs) == 4 else ""
            protos[node.op_identifier()] = attention_proto(node.overload)
            continue
        variant = _variant(node)
        node.overload = variant.overload
        if node.op_identifier() not in protos:
            protos[node.op_identifier()] = function_proto(node.op_type, variant)
        if "block_size" in node.attributes:
            model.opset_imports[CONTRIB_DOMAIN] = 1
    for identifier in [identifier for identifier in model.functions if identifier[0] == DOMAIN]:
        del model.functions[identifier]
    for identifier, proto in protos.items():
        model.functions[identifier] = ir.from_proto(proto)
        model.opset_imports[DOMAIN] = 1


def _variant(node: ir.Node) -> Variant:
    """The variant of a QLinear node; affine 4-bit codes get their block size on the way."""
    kind = KINDS[node.op_type]
    codebook = node.inputs[3].const_value if node.inputs[3] is not None else None
    if codebook is None:
        raise InputError(f"ONNX node {node.name!r} has no constant codebook: the table must be a buffer")
    entries = codebook.numpy().reshape(-1).astype(np.int64)
    affine = np.array_equal(entries, np.arange(kind.entries) - kind.entries // 2)
    group, inner = node.attributes["group_size"].as_int(), node.attributes["K"].as_int()
    block = block_size(group)
    direct = affine and {"4": block is not None, "8": group == inner}.get(kind.coding, False)
    if direct and kind.coding == "4":
        node.attributes["block_size"] = ir.AttrInt64("block_size", block)
    return Variant(
        not direct,
        node.attributes["prologue"].as_string(),
        node.attributes["epilogue"].as_string(),
        COLUMNS in node.attributes,
        len(node.outputs),
    )


def name_nodes(model: ir.Model, prefix: str) -> None:
    """Name every ``ditpress`` node after its module, known from its codes ``<prefix>.<module>.codes``."""
    for node in model.graph:
        codes = node.inputs[1] if node.domain == DOMAIN else None
        if codes is not None and codes.name is not None:
            node.name = codes.name.removeprefix(f"{prefix}.").removesuffix(".codes")
