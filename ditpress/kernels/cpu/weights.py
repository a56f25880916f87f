"""Weights in the layout of the C++ kernels, one packed copy per tensor of codes, as long as that lives."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ditpress.errors import InputError
from ditpress.kernels.arguments import LinearArguments, check_table_values, check_weight, code_entries
from ditpress.kernels.cpu import isa, last_error, load


@dataclass(frozen=True)
class Fusion:
    """What a linear does beside the product, as in ``ditpress::qlinear_fused``; None leaves a part out."""

    shift: Tensor | None = None
    modulation: Tensor | None = None
    epsilon: float = 1e-6
    gelu: bool = False
    gate: Tensor | None = None
    residual: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.shift, self.modulation, self.gate, self.residual


PLAIN = Fusion()


_ACTIVATIONS = ("none", "int8", "int4", "uint4", "fp4-e2m1", "fp8-e4m3")
"""In the order of enum Activation in core.h."""


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class PackedWeight:
    """A weight ``[N, K]`` repacked into panels by the library; freed with this object.

    Args:
        in_features, codes, scale, codebook, activation, fold_scales, table: as in ``ditpress::qlinear``,
            checked.
        path: instruction set to pack for and run on, default :func:`ditpress.kernels.cpu.isa`.
    """

    def __init__(
        self,
        in_features: int,
        codes: Tensor,
        scale: Tensor,
        codebook: Tensor,
        activation: str,
        path: str | None = None,
        *,
        fold_scales: bool = False,
        table: Tensor | None = None,
    ) -> None:
        library = load()
        if library is None:
            raise InputError("the C++ kernels were not built: reinstall ditpress with a compiler")
        self.in_features, self.out_features = in_features, codes.shape[0]
        codes, scale, codebook = codes.contiguous(), scale.contiguous(), codebook.contiguous()
        table = None if table is None else table.contiguous()
        self._library = library
        self._handle = library.ditpress_weight_create(
            codes.data_ptr(),
            self.out_features,
            in_features,
            code_entries(codebook, table),
            codebook.shape[1],
            codebook.data_ptr(),
            codebook.shape[0] // code_entries(codebook, table),
            _pointer(table),
            scale.data_ptr(),
            int(scale.dtype == torch.float16),
            scale.shape[1],
            _ACTIVATIONS.index(activation),
            int(fold_scales),
            (path or isa()).encode(),
        )
        if not self._handle:
            raise InputError(last_error(library))
        weakref.finalize(self, library.ditpress_weight_destroy, self._handle)

    def run(self, x: Tensor, bias: Tensor | None, fusion: Fusion = PLAIN) -> Tensor:
        """float32 ``[..., K]`` (checked by the caller) to float32 ``[..., N]``, on torch's threads."""
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=torch.float32)
        held = [
            None if t is None else t.contiguous()
            for t in (bias, *(fusion.tensors() if fusion else (None,) * 4))
        ]
        bias, shift, modulation, gate, residual = held
        status = self._library.ditpress_weight_run(
            self._handle,
            x.data_ptr(),
            x.numel() // self.in_features,
            _pointer(bias),
            _pointer(shift),
            _pointer(modulation),
            0 if modulation is None else modulation.numel() // self.in_features,
            fusion.epsilon,
            int(fusion.gelu),
            _pointer(gate),
            _pointer(residual),
            0 if gate is None else gate.numel() // self.out_features,
            y.data_ptr(),
            torch.get_num_threads(),
        )
        if status:
            raise InputError(last_error(self._library))
        return y

    def nbytes(self) -> int:
        """Memory that the packed copy takes."""
        return int(self._library.ditpress_weight_bytes(self._handle))


@dataclass
class _Entry:
    """A packed weight and what it was made of, to see whether it still holds."""

    state: tuple[object, ...]
    made_of: tuple[weakref.ref[Tensor] | None, ...]
    weight: PackedWeight


# codes -> (activation, folded) -> entry. Keyed weakly by identity: the packed copy dies with the codes.
_cache: WeakIdKeyDictionary = WeakIdKeyDictionary()


def packed_weight(in_features: int, given: LinearArguments) -> PackedWeight | None:
    """The packed form of a weight on the CPU, made at its first use and again after an in-place change.

    Returns None under ``DITPRESS_ISA=reference``. A change through ``.data`` or numpy does not move torch's
    version counter and is not seen.
    """
    codes, scale, codebook, _, activation, fold_scales, table = given
    entries: dict[tuple[str, bool], _Entry] | None = _cache.get(codes)
    kind = activation, fold_scales
    parts = scale, codebook, table
    state = (in_features, _state(codes), *map(_state, parts))
    if entries is not None:
        entry = entries.get(kind)
        if (
            entry is not None
            and entry.state == state
            and all(
                (None if held is None else held()) is part
                for held, part in zip(entry.made_of, parts, strict=True)
            )
        ):
            return entry.weight
    check_weight(in_features, codes, scale, codebook, activation, fold_scales, table)
    if isa() == "reference":
        return None
    check_table_values(table, codebook)
    weight = PackedWeight(
        in_features, codes, scale, codebook, activation, fold_scales=fold_scales, table=table
    )
    if entries is None:
        entries = _cache[codes] = {}
    made_of = tuple(None if part is None else weakref.ref(part) for part in parts)
    entries[kind] = _Entry(state, made_of, weight)
    return weight


def _state(tensor: Tensor | None) -> tuple[int, int]:
    """Changes when the tensor is written in place or given other memory."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
