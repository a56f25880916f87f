"""The meaning of each ``ditpress`` ONNX node, written in standard and contrib operators.

A file holds, beside the nodes ``QLinear<coding><activations>`` and ``Attention``, one model-local function
per variant that its nodes need; activations are A8 (int8), A4 (int4), U4 (uint4), F4 (E2M1), F8 (E4M3) or
nothing. ONNX Runtime takes our kernel where the library is registered and inlines the function where it is
not, so one file runs on a plain installation too, with the same numbers up to the rounding of float32 sums:
the rounding of activations is written out exactly, integers travel in float32 or through ``MatMulInteger``,
and the codes stay packed.

The choice between the functions of one node kind is what ONNX calls an *overload*, here
:attr:`ditpress.export.functions.kinds.Variant.overload`:

affine codes (value = code - 2**(bits-1))
    Through ``MatMulNBits`` (4 bit, float32 arithmetic), ``MatMulInteger`` (8 bit, exact) or
    ``DequantizeLinear`` (8 bit, weight-only).
``table``
    Any codebook, any group size: codes are looked up at every run. Slower, and just as small in memory.

To it come the prologue, the epilogue and the number of outputs: ``table.layer_norm_modulate.split3``.
"""

from ditpress.export.functions.attach import (
    attach_functions,
    attention_proto,
    block_size,
    function_proto,
    name_nodes,
)
from ditpress.export.functions.kinds import ATTENTION, DOMAIN, KINDS, OPSET, Kind, Variant, kind_of

__all__ = [
    "ATTENTION",
    "DOMAIN",
    "KINDS",
    "OPSET",
    "Kind",
    "Variant",
    "attach_functions",
    "attention_proto",
    "block_size",
    "function_proto",
    "kind_of",
    "name_nodes",
]
