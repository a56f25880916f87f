"""Our torch operators as ONNX nodes, for the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxscript
import torch

import ditpress.kernels.qlinear  # noqa: F401  (declares torch.ops.ditpress.qlinear)
from ditpress.export.functions import DOMAIN, KINDS, Kind, kind_of
from ditpress.kernels.arguments import TABLE_ENTRIES

_ATTRIBUTES = {
    "N": "INT",
    "K": "INT",
    "group_size": "INT",
    "fold_scales": "INT",
    "prologue": "STRING",
    "epsilon": "FLOAT",
    "epilogue": "STRING",
}


def _schema(kind: Kind) -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    value = schema.FormalParameter
    return schema(
        kind.name,
        DOMAIN,
        1,
        inputs=[
            value("x", "T"),
            value("codes", "C"),
            value("scale", "S"),
            value("codebook", "E"),
            value("bias", "T"),
            *([value("table", "C")] if "table" in kind.inputs else []),
        ],
        outputs=[value("y", "T")],
        type_constraints=[
            ("T", ["tensor(float)"], ""),
            ("C", ["tensor(uint8)"], ""),
            ("S", ["tensor(float16)", "tensor(float)"], ""),
            ("E", ["tensor(int8)"], ""),
        ],
        attributes=[
            schema.Attribute(name, getattr(schema.AttrType, type_), "", required=True)
            for name, type_ in _ATTRIBUTES.items()
        ],
    )


_OPS = {
    name: onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), name, _schema(kind))
    for name, kind in KINDS.items()
}


def _translate(
    x: Any,
    codes: Any,
    scale: Any,
    codebook: Any,
    bias: Any,
    activation: str,
    fold_scales: bool = False,
    table: Any = None,
) -> Any:
    """``torch.ops.ditpress.qlinear`` as one ONNX node; the lengths become attributes."""
    tables = table is not None
    entries = TABLE_ENTRIES if tables else int(codebook.shape[0])
    kind = kind_of(entries, int(codebook.shape[1]), activation, tables)
    out_features, in_features = int(codes.shape[0]), int(x.shape[-1])
    if bias is None:
        bias = _constant(np.zeros(out_features, np.float32))
    flat = onnxscript.opset20.Reshape(codebook, _constant(np.array([-1], np.int64)))
    return _OPS[kind.name](
        x,
        codes,
        scale,
        flat,
        bias,
        *([table] if tables else []),
        N=out_features,
        K=in_features,
        group_size=in_features // int(scale.shape[1]),
        fold_scales=int(fold_scales),
        prologue="",
        epsilon=0.0,
        epilogue="",
    )


def _constant(array: np.ndarray) -> Any:
    return onnxscript.opset20.Constant(value=onnx.numpy_helper.from_array(array))


# What torch.onnx.export takes as its custom_translation_table.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.ditpress.qlinear.default: _translate}
