"""Scaled dot-product attention becomes one node, on rows whose heads lie side by side."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from ditpress.export.functions import ATTENTION, DOMAIN
from ditpress.export.fuse.pattern import (
    Dims,
    before,
    constant,
    fits,
    integers,
    made_by,
    numbers,
    only_user,
    shape_of,
    take_over,
)

_SWAP = [0, 2, 1, 3]  # [B, T, H, d] to [B, H, T, d] and back


class _Attention(NamedTuple):
    """What one Attention node needs; q, k and v are still ``[B, H, T or S, d]``."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    mask: ir.Value | None
    scale: float
    result: ir.Value  # [B, T, H * d]


def fuse_attention(graph: ir.Graph) -> int:
    """The operators that torch.onnx writes for ``F.scaled_dot_product_attention``, up to its merged heads.

    q, k and v are read before their heads were split where that is a plain Reshape and Transpose (or a
    concatenation of such); else (rotary embedding, a norm per head) the heads are put side by side again. An
    additive mask is kept. Anything else between the operators leaves them as they are.

    Returns:
        How many were fused.
    """
    fired = 0
    for node in list(graph):
        if node.domain != "" or node.op_type != "Softmax":
            continue
        found = _match(node)
        if found is None:
            continue
        anchor = found.result.producer()
        dims = shape_of(found.q)
        assert anchor is not None
        assert dims is not None
        rows = [_rows(value, anchor, heads_first=True) for value in (found.q, found.k, found.v)]
        attention = ir.node(
            ATTENTION,
            rows if found.mask is None else [*rows, found.mask],
            {"num_heads": dims[1], "scale": found.scale, "bf16": 1},
            domain=DOMAIN,
            name=f"{found.result.name}.attention",
        )
        graph.insert_before(anchor, attention)
        take_over(found.result, attention.outputs[0])
        fired += 1
    return fired


def _match(softmax: ir.Node) -> _Attention | None:
    if "axis" in softmax.attributes and softmax.attributes["axis"].as_int() != -1:
        return None
    mixed = only_user(softmax.outputs[0])
    if mixed is None or mixed.domain != "" or mixed.op_type != "MatMul":
        return None
    if mixed.inputs[0] is not softmax.outputs[0]:
        return None
    v, scores = mixed.inputs[1], softmax.inputs[0]
    for product, mask in _masked(scores):
        factors = made_by(product, "MatMul")
        if factors is None or product is None or only_user(product) is None:
            continue
        q, q_scale = _scaled(factors.inputs[0])
        k_transposed, k_scale = _scaled(factors.inputs[1])
        k = _before_transpose(k_transposed)
        result = _merged_heads(mixed.outputs[0])
        if q is None or k is None or v is None or result is None:
            continue
        q_dims, k_dims = shape_of(q), shape_of(k)
        if q_dims is None or k_dims is None or len(q_dims) != 4 or len(k_dims) != 4:
            continue
        batch, heads, queries, length = q_dims
        keys = k_dims[2]
        if not isinstance(heads, int) or not isinstance(length, int):
            continue
        fit = (
            fits(q, q_dims)
            and fits(k, (batch, heads, keys, length))
            and fits(v, (batch, heads, keys, length))
            and fits(result, (batch, queries, heads * length))
            and (mask is None or _broadcasts(mask, (batch, heads, queries, keys)))
        )
        if fit and q_scale * k_scale > 0:
            return _Attention(q, k, v, mask, q_scale * k_scale, result)
    return None


def _masked(scores: ir.Value | None) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Ways to read the scores as (product, mask)."""
    added = made_by(scores, "Add")
    if scores is None or added is None or only_user(scores) is None:
        return [(scores, None)]
    first, second = added.inputs
    return [(first, second), (second, first)]


def _broadcasts(mask: ir.Value, scores: Dims) -> bool:
    dims = shape_of(mask)
    if dims is None or len(dims) != 4 or not fits(mask, dims):
        return False
    return all(dim == 1 or (dim is not None and dim == full) for dim, full in zip(dims, scores, strict=True))


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """What a constant multiplies, and the constant; the value itself and 1 where none does."""
    product = made_by(value, "Mul")
    for index in () if product is None else (0, 1):
        assert product is not None
        factor = product.inputs[1 - index]
        cast = made_by(factor, "CastLike")
        array = constant(factor if cast is None else cast.inputs[0])
        if array is not None and array.size == 1:
            return product.inputs[index], float(array.reshape(-1)[0])
    return value, 1.0


def _before_transpose(value: ir.Value | None) -> ir.Value | None:
    """k ``[B, H, S, d]`` of its transpose ``[B, H, d, S]``, also where that goes through three dimensions."""
    direct = made_by(value, "Transpose")
    if direct is not None:
        return direct.inputs[0] if _permutation(direct) == [0, 1, 3, 2] else None
    unfolded = made_by(value, "Reshape")
    transposed = made_by(unfolded.inputs[0], "Transpose") if unfolded is not None else None
    folded = made_by(transposed.inputs[0], "Reshape") if transposed is not None else None
    if unfolded is None or transposed is None or folded is None or _permutation(transposed) != [0, 2, 1]:
        return None
    k = folded.inputs[0]
    dims = shape_of(k)
    if k is None or dims is None or len(dims) != 4 or None in dims:
        return None
    batch, heads, keys, length = dims
    if numbers(folded.inputs[1]) != (-1, keys, length):
        return None
    shape = numbers(unfolded.inputs[1])
    return k if shape and shape[0] in (batch, -1) and shape[1:] == (heads, length, keys) else None


def _permutation(node: ir.Node) -> list[int] | None:
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None


def _merged_heads(mixed: ir.Value) -> ir.Value | None:
    """``[B, T, H * d]`` that Transpose and Reshape make of ``[B, H, T, d]`` and nothing else reads."""
    transposed = only_user(mixed)
    if transposed is None or transposed.domain != "" or transposed.op_type != "Transpose":
        return None
    merged = only_user(transposed.outputs[0])
    if _permutation(transposed) != _SWAP or merged is None or merged.domain != "":
        return None
    return merged.outputs[0] if merged.op_type == "Reshape" else None


def _rows(value: ir.Value, anchor: ir.Node, heads_first: bool) -> ir.Value:
    """``[B, T, H * d]`` of heads ``[B, H, T, d]`` or ``[B, T, H, d]``, with as little work as possible."""
    dims = shape_of(value)
    assert dims is not None
    batch, heads, tokens, length = dims if heads_first else (dims[0], dims[2], dims[1], dims[3])
    assert isinstance(heads, int)
    assert isinstance(length, int)
    row = (batch, tokens, heads * length)
    joined = made_by(value, "Concat")
    axis = 2 if heads_first else 1
    if joined is not None and joined.attributes["axis"].as_int() == axis and only_user(value) is not None:
        parts = [part for part in joined.inputs if part is not None and len(shape_of(part) or ()) == 4]
        if len(parts) == len(joined.inputs):
            pieces = [_rows(part, anchor, heads_first) for part in parts]
            return before(anchor, "Concat", pieces, row, axis=1)
    if heads_first:
        swapped = made_by(value, "Transpose")
        if swapped is not None and _permutation(swapped) == _SWAP and swapped.inputs[0] is not None:
            return _rows(swapped.inputs[0], anchor, heads_first=False)
        by_tokens = before(anchor, "Transpose", [value], (batch, tokens, heads, length), perm=_SWAP)
        return _rows(by_tokens, anchor, heads_first=False)
    split = made_by(value, "Reshape")
    if split is not None and split.inputs[0] is not None and fits(split.inputs[0], row):
        return split.inputs[0]
    return before(anchor, "Reshape", [value, integers(anchor, [0, 0, heads * length])], row)
