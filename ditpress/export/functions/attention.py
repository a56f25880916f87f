"""Text of the function of ``attention``, in ONNX's own syntax."""

from __future__ import annotations

# PyTorch's order of operations: the root of the scale goes into both factors. 0 in a shape keeps a length.
ATTENTION_BODY = """
    minus_one = Constant <value_ints = [-1]> ()
    keep = Constant <value_ints = [0]> ()
    heads_scalar = Constant <value_int: int = @num_heads> ()
    heads = Reshape (heads_scalar, minus_one)
    split_shape = Concat <axis = 0> (keep, keep, heads, minus_one)
    q_split = Reshape (q, split_shape)
    k_split = Reshape (k, split_shape)
    v_split = Reshape (v, split_shape)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_split)
    k_heads = Transpose <perm = [0, 2, 3, 1]> (k_split)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_split)
    scale_value = Constant <value_float: float = @scale> ()
    root = Sqrt (scale_value)
    q_scaled = Mul (q_heads, root)
    k_scaled = Mul (k_heads, root)
    products = MatMul (q_scaled, k_scaled)
    scores = {scores}
    probabilities = Softmax <axis = -1> (scores)
    mixed = MatMul (probabilities, v_heads)
    tokens = Transpose <perm = [0, 2, 1, 3]> (mixed)
    rows_shape = Concat <axis = 0> (keep, keep, minus_one)
    y = Reshape (tokens, rows_shape)
"""
