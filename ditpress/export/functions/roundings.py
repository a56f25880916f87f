"""Texts that round inputs as the name of an activation says: ``a`` of ``h``.

With int8 they also give ``step`` [.., 1], what the whole numbers ``a`` stand for; else ``a`` holds it.
"""

from __future__ import annotations

# q = clamp(rint(h * (127 / amax)), -127, 127) per token. 1e-36 keeps 127 / amax finite: a row of zeros gives
# q = 0 and step = 0, so z = bias.
_QUANTIZE = """
    magnitude = Abs (h)
    amax = ReduceMax <keepdims = 1> (magnitude, minus_one)
    top = Constant <value_float = 127.0> ()
    bottom = Constant <value_float = -127.0> ()
    smallest = Constant <value_float = 1e-36> ()
    safe = Max (amax, smallest)
    inverse = Div (top, safe)
    scaled = Mul (h, inverse)
    rounded = Round (scaled)
    a = Clip (rounded, bottom, top)
    step = Div (amax, top)
"""
_KEEP = """
    a = Identity (h)
"""
# The same for every group of `group_size` values. Whole numbers times scales go into the product in float32.
_GROUPED = """
    row_lead = Shape <start = 0, end = -1> (h)
    group_count = Div (k, g)
    groups_shape = Concat <axis = 0> (row_lead, group_count, g)
    h_grouped = Reshape (h, groups_shape)
    {positive}
    magnitude = Abs (h_positive)
    amax = ReduceMax <keepdims = 1> (magnitude, minus_one)
    top = Constant <value_float = {levels}> ()
    bottom = Constant <value_float = -{levels}> ()
    smallest = Constant <value_float = 1e-36> ()
    safe = Max (amax, smallest)
    inverse = Div (top, safe)
    scaled = Mul (h_positive, inverse)
    {rounded}
    whole = Clip (rounded, bottom, top)
    group_step = Div (amax, top)
    a_grouped = Mul (whole, group_step)
    h_shape = Shape (h)
    a = Reshape (a_grouped, h_shape)
"""
_SIGNED, _POSITIVE = "h_positive = Identity (h_grouped)", "h_positive = Relu (h_grouped)"
_ROUND = "rounded = Round (scaled)"
# Steps of 1 up to 4, of 2 up to 8, then of 4: E2M1 in half units.
_ROUND_E2M1 = """
    size = Abs (scaled)
    fours = Constant <value_float = 4.0> ()
    halves = Constant <value_float = 2.0> ()
    eights = Constant <value_float = 8.0> ()
    ones = Round (scaled)
    scaled_half = Div (scaled, halves)
    half_rounded = Round (scaled_half)
    twos = Mul (half_rounded, halves)
    scaled_fourth = Div (scaled, fours)
    fourth_rounded = Round (scaled_fourth)
    large = Mul (fourth_rounded, fours)
    below_eight = Less (size, eights)
    middle_or_large = Where (below_eight, twos, large)
    below_four = Less (size, fours)
    rounded = Where (below_four, ones, middle_or_large)
"""
# ONNX's float8e4m3fn (17) rounds to the nearest, the even one of two, and saturates. 1e-35 keeps 448 / amax
# finite.
_E4M3 = """
    magnitude = Abs (h)
    amax = ReduceMax <keepdims = 1> (magnitude, minus_one)
    top = Constant <value_float = 448.0> ()
    smallest = Constant <value_float = 1e-35> ()
    safe = Max (amax, smallest)
    inverse = Div (top, safe)
    scaled = Mul (h, inverse)
    byte_float = Cast <to = 17> (scaled)
    rounded = Cast <to = 1> (byte_float)
    row_step = Div (amax, top)
    a = Mul (rounded, row_step)
"""
ROUNDINGS = {
    "none": _KEEP,
    "int8": _QUANTIZE,
    "int4": _GROUPED.format(levels="7.0", positive=_SIGNED, rounded=_ROUND),
    "uint4": _GROUPED.format(levels="15.0", positive=_POSITIVE, rounded=_ROUND),
    "fp4-e2m1": _GROUPED.format(levels="12.0", positive=_SIGNED, rounded=_ROUND_E2M1),
    "fp8-e4m3": _E4M3,
}
