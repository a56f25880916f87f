"""The one way from a float weight to low-bit codes: search the scales, then round.

Pure mathematics, tensors in and tensors out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.compress.quantize import fp4, power_of_two
from ditpress.compress.quantize.fitted import FittedWeight
from ditpress.compress.quantize.gptq import gptq
from ditpress.compress.quantize.grid import check_format, grid_of
from ditpress.compress.quantize.refit import refit_scale
from ditpress.compress.quantize.rtn import check_group, round_to_nearest, search_scale, split_groups
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.quantize.vector import check_vectors, fit_vectors
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import scale_dtype

__all__ = ["FittedWeight", "fit_weight"]


def fit_weight(
    weight: Tensor, spec: WeightSpec, name: str = "weight", second_moment: Tensor | None = None
) -> FittedWeight:
    """``weight`` in the storage of ``spec``: scale search, then rounding.

    Args:
        weight: float [N, K], on the CPU.
        spec: format, group, rounding.
        name: the layer, for errors.
        second_moment: of the layer's inputs, [K, K]; needed by ``rounding: gptq``.

    Raises:
        InputError: a format that does not fit the weight, a weight or second moment that is not finite, or
            no second moment where one is needed.
        StageError: see :func:`ditpress.compress.quantize.gptq.gptq`.
    """
    format = get_format(spec.format)
    rows, columns = weight.shape
    check_storage(rows, columns, spec, name)
    if format.codebook is None:
        return fit_vectors(
            weight,
            format,
            torch.Generator().manual_seed(0),
            second_moment,
            name,
            rounding=spec.rounding,
            gptq=spec.gptq,
        )
    group_size = spec.group_size(columns)
    groups = split_groups(weight, group_size, name)
    dtype = scale_dtype(group_size, columns)
    table: Tensor | None = None
    if format.tables > 1:
        _, scale, table = fp4.fit(groups, dtype, second_moment, choice=spec.tables, name=name)
    else:
        scale = search_scale(groups, format, dtype, name)
    if spec.scale_ratios != "free":
        scale = _in_powers_of_two(groups, scale, spec, name, second_moment)
    if spec.rounding == "nearest":
        codes = round_to_nearest(groups, scale, format, table).view(rows, columns)
        return FittedWeight(codes, scale, format, table=table)
    if second_moment is None:
        raise InputError(
            f"{name}: rounding: gptq needs the second moment of its inputs; calibrate, or use nearest"
        )
    codes = gptq(
        weight,
        scale,
        format,
        second_moment,
        table,
        damping=spec.gptq.damping,
        act_order=spec.gptq.act_order,
        name=name,
    )
    if spec.gptq.refit and spec.scale_ratios == "free":
        values = grid_of(format).values_of(codes, table)
        scale = refit_scale(weight, values, scale, second_moment)
    return FittedWeight(codes, scale, format, table=table)


def check_storage(rows: int, columns: int, spec: WeightSpec, name: str) -> None:
    """Raise InputError where a weight of this shape cannot be stored as ``spec`` says; names the layer."""
    format = get_format(spec.format)
    if format.codebook is not None:
        check_format(format)
        check_group(columns, spec.group_size(columns), name)
        return
    if spec.group != "channel" or spec.scale_ratios != "free":
        raise InputError(
            f"{name}: format {format.name} has one scale per output row; expected group: channel and "
            f"scale_ratios: free, got {spec.group} and {spec.scale_ratios}"
        )
    check_vectors(rows, columns, format, name)


def _in_powers_of_two(
    groups: Tensor, scale: Tensor, spec: WeightSpec, name: str, second_moment: Tensor | None
) -> Tensor:
    if spec.format != "fp4-e2m1":
        raise InputError(
            f"{name}: scale_ratios: {spec.scale_ratios} is for format fp4-e2m1, whose values times a "
            f"power of two are E4M3 numbers; {spec.format} takes scale_ratios: free"
        )
    if spec.scale_ratios == "power-of-two-m2":
        return power_of_two.constrain(scale)
    return power_of_two.search(groups, scale, get_format(spec.format), second_moment, name)
