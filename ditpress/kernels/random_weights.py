"""Layers with random codes, scales and codebooks: for speed measurements and tests, where the numbers matter
little and their sizes much."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.formats import Format, get_format
from ditpress.kernels.linear import Activation, QuantizedLinear, scale_dtype
from ditpress.kernels.packing import BITS, packed_width


def random_codes(rows: int, count: int, entries: int, generator: torch.Generator | None = None) -> Tensor:
    """Packed random codes as :func:`ditpress.kernels.packing.pack` writes them, drawn byte by byte.

    Args:
        rows, count: codes ``[rows, count]``.
        entries: of the codebook; every code below it may occur.
        generator: of random numbers on the CPU.

    Returns:
        uint8 ``[rows, packed_width(count, entries)]``, with no memory beside it.
    """
    width = packed_width(count, entries)
    packed = torch.empty((rows, width), dtype=torch.uint8)
    if entries == 3:
        packed.random_(0, 3**5, generator=generator)
        last = 3 ** (count - 5 * (width - 1))
    else:
        packed.random_(0, 256, generator=generator)
        last = 2 ** (count * int(BITS[entries]) - 8 * (width - 1))
    if width and last < 256:
        packed[:, -1] %= last
    return packed


def random_linear(
    in_features: int,
    out_features: int,
    format: Format | str,
    group_size: int,
    activation: Activation = "int8",
    *,
    bias: bool = True,
    fold_scales: bool = False,
    seed: int = 0,
) -> QuantizedLinear:
    """A layer with random numbers; its weight has a variance of about 1 / K, its memory is that of the layer.

    Args:
        in_features, out_features, format, group_size, activation, bias, fold_scales: as in
            :class:`~ditpress.kernels.linear.QuantizedLinear`.
        seed: the same seed gives the same layer.

    Raises:
        InputError: group size or vector length do not divide ``in_features``.
    """
    fmt = get_format(format) if isinstance(format, str) else format
    length = fmt.vector_length
    if group_size < 1 or in_features % group_size or in_features % length:
        raise InputError(
            f"group size {group_size} and vector length {length} must divide in_features={in_features}"
        )
    generator = torch.Generator().manual_seed(seed)
    own = None
    if fmt.codebook is None:
        own = (torch.randn((fmt.entries * fmt.tables, length), generator=generator) * 40).round()
        own = own.clamp(-127, 127).to(torch.int8)
    codebook = fmt.codebook_tensor() if own is None else own
    # of the values of every table
    deviation = codebook.float().view(fmt.tables, -1).square().mean(dim=1).sqrt() * math.sqrt(in_features)
    table = None
    if fmt.tables > 1:
        table = torch.randint(0, fmt.tables, (out_features,), generator=generator).to(torch.uint8)
    scale = torch.rand((out_features, in_features // group_size), generator=generator) + 0.5
    return QuantizedLinear(
        random_codes(out_features, in_features // length, fmt.entries, generator),
        (scale / deviation[0 if table is None else table.long()].view(-1, 1)).to(
            scale_dtype(group_size, in_features)
        ),
        fmt,
        in_features,
        torch.randn(out_features, generator=generator) * 0.1 if bias else None,
        activation,
        own,
        fold_scales,
        table,
    )
