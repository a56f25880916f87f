"""Plain round to nearest in the very storage of a recipe: what its bits give without a method.

Every low-bit layer of the recipe's result is made again from the original's weights, in the same format, with
the same group, activations and kernel, but without smoothing, low-rank branches, clip search or calibration:
the largest weight of a group stands at the end of the table, each weight takes the nearest entry.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ditpress.compress.quantize.rtn import round_to_nearest, split_groups
from ditpress.kernels.formats import Format, get_format
from ditpress.kernels.linear import Activation, QuantizedLinear, scale_dtype
from ditpress.kernels.packing import pack

FIRST_TABLE = {"fp4": "fp4-e2m1"}
UNSHIFTED = {"uint4": "int4"}  # nothing shifts inputs to be positive here: they need a sign


def plain_linear(linear: nn.Linear, like: QuantizedLinear, name: str) -> QuantizedLinear:
    """``linear`` in the storage of ``like``."""
    format = get_format(like.format)
    if format.tables > 1:  # a choice of tables is a method; plain is the first of them
        format = get_format(FIRST_TABLE[format.name])
    weight = split_groups(linear.weight, like.group_size, name)
    dtype = scale_dtype(like.group_size, linear.in_features)
    if format.codebook is None:
        scale, codes, codebook = vector_codes(weight, format, dtype)
    else:
        scale, codes, codebook = *scalar_codes(weight, format, dtype), None
    codes = codes.reshape(linear.out_features, linear.in_features // format.vector_length)
    return QuantizedLinear(
        pack(codes, format.entries),
        scale,
        format,
        linear.in_features,
        None if linear.bias is None else linear.bias.detach().float().clone(),
        cast(Activation, UNSHIFTED.get(like.activation, like.activation)),
        codebook,
        like.fold_scales,
    )


def scalar_codes(weight: Tensor, format: Format, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale [N, G] and codes uint8 [N, G, g] of ``weight`` float32 [N, G, g] in a table of single values.

    The scale puts the group's largest |w| on the largest entry that the table has on both sides (int4: 7). A
    ternary table has no end to speak of: there the scale is the mean |w|, as in BitNet b1.58 (Ma et al. 2024,
    eq. 3), and a weight becomes 0 below half of it.
    """
    values = format.codebook_tensor().int()
    if set(values.flatten().tolist()) == {-1, 0, 1}:
        scale = weight.abs().mean(dim=-1)
    else:
        end = min(int(values.max()), -int(values[values >= -127].min()))
        scale = weight.abs().amax(dim=-1) / end
    scale = scale.to(dtype)
    return scale, round_to_nearest(weight, scale, format)


def vector_codes(weight: Tensor, format: Format, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, codes and codebook where the format leaves the table to the layer: every weight on its own.

    A codebook of L^d entries of d weights holds all d-tuples of L evenly spaced values -(L-1), .., L-1 in
    steps of two; so it stores plain log2(L)-bit rounding, at the bits of vector quantization.

    Returns:
        scale ``dtype`` [N, G], codes uint8 [N, G, g / d], codebook int8 [entries, d].
    """
    d = format.vector_length
    levels = round(format.entries ** (1 / d))
    if levels**d != format.entries:
        raise ValueError(f"format {format.name}: {format.entries} entries are no grid of {d} dimensions")
    grid = torch.arange(levels, dtype=torch.int8) * 2 - (levels - 1)
    codebook = torch.cartesian_prod(*[grid] * d).reshape(format.entries, d)
    scale = (weight.abs().amax(dim=-1) / (levels - 1)).to(dtype)
    step = 2 * scale.float().clamp_min(torch.finfo(torch.float32).tiny)
    index = (weight / step[..., None] + levels / 2).floor().clamp(0, levels - 1).long()
    places = torch.tensor([levels ** (d - 1 - position) for position in range(d)])
    codes = (index.unflatten(-1, (-1, d)) * places).sum(dim=-1)
    return scale, codes.to(torch.uint8), codebook
