"""The assignment step of weighted k-means on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.cpu import isa, last_error, load


def run_nearest(
    pull: Tensor, pressure: Tensor, codebook: Tensor, path: str | None = None
) -> tuple[Tensor, Tensor]:
    """The codeword c of least ``sum_d pressure c² - 2 pull c`` for every point, on torch's threads.

    Memory: no costs but the result.

    Args:
        pull, pressure: float32 [M, d].
        codebook: float32 [E, d].
        path: instruction set to run on, default :func:`ditpress.kernels.cpu.isa`.

    Returns:
        ``(codes, cost)``: int64 [M], of equal codewords the first, and float32 [M]. Costs that are NaN or
        infinite lose; a point with no other has code 0 and an infinite cost.

    Raises:
        InputError: tensors that do not fit each other, or the kernels were not built.
    """
    library = load()
    if library is None:
        raise InputError("the C++ kernels were not built: reinstall ditpress with a compiler")
    for name, tensor in (("pull", pull), ("pressure", pressure), ("codebook", codebook)):
        if tensor.dtype != torch.float32 or tensor.dim() != 2 or tensor.device.type != "cpu":
            raise InputError(
                f"k-means {name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, "
                "expected torch.float32 of two dimensions on the CPU"
            )
    if pressure.shape != pull.shape or codebook.shape[1] != pull.shape[1]:
        raise InputError(
            f"k-means pull is {list(pull.shape)}, pressure {list(pressure.shape)} and the codebook "
            f"{list(codebook.shape)}, expected [M, d], [M, d] and [E, d]"
        )
    pull, pressure, codebook = pull.contiguous(), pressure.contiguous(), codebook.contiguous()
    codes = torch.empty(len(pull), dtype=torch.int64)
    cost = torch.empty(len(pull), dtype=torch.float32)
    status = library.ditpress_nearest(
        pull.data_ptr(),
        pressure.data_ptr(),
        len(pull),
        pull.shape[1],
        codebook.data_ptr(),
        len(codebook),
        codes.data_ptr(),
        cost.data_ptr(),
        (path or isa()).encode(),
        torch.get_num_threads(),
    )
    if status:
        raise InputError(last_error(library))
    return codes, cost
