"""The search for the scale of every group of weights on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.cpu import isa, last_error, load


def run_best_scales(
    weight: Tensor,
    scale: Tensor,
    low: int,
    high: int,
    values: Tensor | None = None,
    importance: Tensor | None = None,
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The scale of least ``sum_i importance (s v(w / s) - w)²`` for every group, on torch's threads.

    Args:
        weight: float32 [R, g].
        scale: s, those to try, float32 [R, C]; 0 stands for no quotient but 0.
        low, high: least and largest value v, within -128 and 128.
        values: float32 [2 (high - low) + 1], the value nearest to x at ``floor(2 x) - 2 low``; None: the
            whole numbers, half to even.
        importance: float32 [P, g], over and over; None: all 1.
        path: instruction set to run on, default :func:`ditpress.kernels.cpu.isa`.

    Returns:
        ``(best, error)``: int64 [R], an index into C, of equal errors the first, and float32 [R]. Errors that
        are NaN or infinite lose; a group with no other has index 0 and an infinite error.

    Raises:
        InputError: tensors that do not fit each other, or the kernels were not built.
    """
    library = load()
    if library is None:
        raise InputError("the C++ kernels were not built: reinstall ditpress with a compiler")
    groups, group = _two(weight, "weight")
    if not -128 <= low <= high <= 128:
        raise InputError(f"search of scales: values from {low} to {high}, expected them within -128 and 128")
    if importance is not None and not len(importance):
        raise InputError("search of scales: importance has no rows, expected 1 or more")
    wanted: list[tuple[Tensor, str, tuple[int | None, ...]]] = [(scale, "scale", (groups, None))]
    if importance is not None:
        wanted.append((importance, "importance", (None, group)))
    if values is not None:
        wanted.append((values.unsqueeze(0), "values", (1, 2 * (high - low) + 1)))
    for tensor, name, shape in wanted:
        if any(want not in (None, got) for want, got in zip(shape, _two(tensor, name), strict=True)):
            raise InputError(
                f"search of scales: {name} is {list(tensor.shape)} for weights {list(weight.shape)} and "
                f"values from {low} to {high}, expected {['any' if want is None else want for want in shape]}"
            )
    weight, scale = weight.contiguous(), scale.contiguous()
    values = None if values is None else values.contiguous()
    importance = None if importance is None else importance.contiguous()
    best = torch.empty(groups, dtype=torch.int64)
    error = torch.empty(groups, dtype=torch.float32)
    status = library.ditpress_best_scales(
        weight.data_ptr(),
        groups,
        group,
        scale.data_ptr(),
        scale.shape[1],
        None if importance is None else importance.data_ptr(),
        0 if importance is None else len(importance),
        low,
        high,
        None if values is None else values.data_ptr(),
        best.data_ptr(),
        error.data_ptr(),
        (path or isa()).encode(),
        torch.get_num_threads(),
    )
    if status:
        raise InputError(last_error(library))
    return best, error


def _two(tensor: Tensor, name: str) -> tuple[int, int]:
    """The shape of a float32 tensor on the CPU with two dimensions."""
    if tensor.dtype != torch.float32 or tensor.dim() != 2 or tensor.device.type != "cpu":
        raise InputError(
            f"search of scales: {name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, expected "
            "torch.float32 of two dimensions on the CPU"
        )
    return tensor.shape[0], tensor.shape[1]
