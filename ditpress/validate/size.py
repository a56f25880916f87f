"""What a transformer takes on disk, module by module, counted from its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditpress.kernels.buffers import FixedBuffers
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import branch_modules
from ditpress.validate.report import Size


@dataclass(frozen=True)
class Stored:
    """One module's own tensors: ``format`` name, stored ``bits`` in all, and the ``parameters`` they hold."""

    format: str
    bits: int
    parameters: int


def stored_modules(transformer: nn.Module, *, float_bits: int | None = None) -> dict[str, Stored]:
    """Every module that owns tensors, by name; a module or tensor that several places share counts once.

    Args:
        transformer: plain modules, :class:`~ditpress.kernels.linear.QuantizedLinear`, and wrappers
            (:mod:`ditpress.kernels.wrap`): what these add takes bits, but holds no parameters of the model.
        float_bits: bits of a floating-point value that stays high. None: as our checkpoints store it, in
            float16 where that holds every value of the tensor exactly, else in its own type; on the meta
            device, where there are no values, 16.

    Buffers that are not saved with the model (``persistent=False``) do not count.
    """
    added = branch_modules(transformer)
    seen: set[int] = set()
    result: dict[str, Stored] = {}
    for name, module in transformer.named_modules():  # visits a shared module once
        if isinstance(module, QuantizedLinear):
            parameters = module.in_features * module.out_features
            parameters += 0 if module.bias is None else module.out_features
            held = 0 if module in added else parameters
            result[name] = Stored(module.format, module.stored_bits(), held)
            continue
        saved = {
            key: tensor
            for key, tensor in module._buffers.items()
            if key not in module._non_persistent_buffers_set
        }
        bits = parameters = widest = 0
        for key, tensor in {**module._parameters, **saved}.items():
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            fixed = isinstance(module, FixedBuffers)
            each = 8 * tensor.element_size() if fixed else _bits_per_value(tensor, float_bits)
            bits += tensor.numel() * each
            widest = max(widest, each if tensor.is_floating_point() else 0)
            parameters += tensor.numel() if key in module._parameters and module not in added else 0
        if bits:
            result[name] = Stored(f"fp{widest}" if widest else "integer", bits, parameters)
    return result


def size_of(
    original: nn.Module,
    compressed: nn.Module,
    *,
    float_bits: int | None = None,
    onnx_bytes: int | None = None,
) -> Size:
    """The size part of the report.

    Args:
        original, compressed: the transformer before and after.
        float_bits: see :func:`stored_modules`; the same for both.
        onnx_bytes: of the exported files, where there are any.
    """
    after = stored_modules(compressed, float_bits=float_bits)
    before = stored_modules(original, float_bits=float_bits)
    bits = sum(stored.bits for stored in after.values())
    parameters = sum(stored.parameters for stored in after.values())
    return Size(
        parameters=parameters,
        original_bytes=sum(stored.bits for stored in before.values()) // 8,
        compressed_bytes=(bits + 7) // 8,
        onnx_bytes=onnx_bytes,
        effective_bits=bits / parameters,
        layers={name: stored.format for name, stored in after.items()},
    )


def _bits_per_value(tensor: Tensor, float_bits: int | None) -> int:
    if not tensor.is_floating_point():
        return 8 * tensor.element_size()
    if float_bits is not None:
        return float_bits
    if tensor.is_meta or torch.equal(tensor.half().to(tensor.dtype), tensor):
        return 16
    return 8 * tensor.element_size()
