"""The node kinds of domain ``ditpress`` and the variants of their functions."""

from __future__ import annotations

from dataclasses import dataclass

from ditpress.errors import InputError

DOMAIN = "ditpress"
OPSET = 20
CONTRIB_DOMAIN = "com.microsoft"
ATTENTION = "Attention"
MASK = "mask"  # overload of Attention with a fourth input

LAYER_NORM_MODULATE = "layer_norm_modulate"
GELU_TANH = "gelu_tanh"
GATE_RESIDUAL = "gate_residual"

INPUTS = ("x", "codes", "scale", "codebook", "bias")
"""Inputs of every QLinear node; one whose codebook has several tables has ``table`` behind them."""
EXTRA_INPUTS = {LAYER_NORM_MODULATE: ("shift", "modulation"), GATE_RESIDUAL: ("gate", "residual")}
"""Further inputs that a prologue or an epilogue asks for, in this order."""
PER_SAMPLE = ("shift", "modulation", "gate")
"""Those of them that have one row for a sample."""
COLUMNS = "columns"
"""Attribute of nodes that cut those rows out of wider ones: the first column of each, in order."""

CODEBOOKS = {
    "8": (256, 1),
    "4": (16, 1),
    "4M": (16, 1),
    "2": (4, 1),
    "T": (3, 1),
    "V8x4": (256, 4),
    "V6x2": (64, 2),
}
"""Codings by the shape of their codebook, [entries, vector length]; T: five trits a byte; 4M: many tables of
16, one of them for every output channel."""
TABLES = "4M"

SUFFIXES = {"none": "", "int8": "A8", "int4": "A4", "uint4": "U4", "fp4-e2m1": "F4", "fp8-e4m3": "F8"}
"""How a node's name ends, by its activation format (:mod:`ditpress.kernels.activations`)."""


@dataclass(frozen=True)
class Kind:
    """One kind of QLinear node.

    Attributes:
        coding: how weights are coded, a key of CODEBOOKS.
        activation: how x is rounded, a key of SUFFIXES.
    """

    coding: str
    activation: str

    @property
    def name(self) -> str:
        return f"QLinear{self.coding}{SUFFIXES[self.activation]}"

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to few bits."""
        return self.activation != "none"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs before those that a prologue or an epilogue asks for."""
        return (*INPUTS, "table") if self.coding == TABLES else INPUTS

    @property
    def entries(self) -> int:
        """Entries of the codebook."""
        return CODEBOOKS[self.coding][0]

    @property
    def vector_length(self) -> int:
        """Consecutive weights along K that one code describes."""
        return CODEBOOKS[self.coding][1]


KINDS = {kind.name: kind for coding in CODEBOOKS for kind in (Kind(coding, name) for name in SUFFIXES)}


def kind_of(entries: int, vector_length: int, activation: str, tables: bool = False) -> Kind:
    """The node kind for a codebook ``[entries, vector_length]``, or for one of several such ``tables``.

    Raises:
        InputError: no node has such codes.
    """
    for coding, shape in CODEBOOKS.items():
        if shape == (entries, vector_length) and (coding == TABLES) == tables:
            return Kind(coding, activation)
    known = ", ".join(f"[{count}, {length}]" for count, length in CODEBOOKS.values())
    raise InputError(f"no ONNX node for a codebook [{entries}, {vector_length}]: expected one of {known}")


@dataclass(frozen=True)
class Variant:
    """Which of a kind's functions a node needs.

    Attributes:
        table: codes are looked up in the codebook; else they are affine, value = code - 2**(bits-1).
        prologue: "" or LAYER_NORM_MODULATE.
        epilogue: "", GELU_TANH or GATE_RESIDUAL.
        columns: rows of PER_SAMPLE inputs are columns of what is given, as the attribute COLUMNS tells.
        outputs: pieces that the columns of the result are split into.
    """

    table: bool = False
    prologue: str = ""
    epilogue: str = ""
    columns: bool = False
    outputs: int = 1

    @property
    def overload(self) -> str:
        """ONNX's name of the choice: the parts that are not the plain ones, joined by dots."""
        parts = ("table" if self.table else "", self.prologue, self.epilogue, COLUMNS if self.columns else "")
        split = f"split{self.outputs}" if self.outputs > 1 else ""
        return ".".join(part for part in (*parts, split) if part)

    def inputs(self, kind: Kind) -> tuple[str, ...]:
        """Names of the inputs of a node of this kind, in order."""
        return (*kind.inputs, *EXTRA_INPUTS.get(self.prologue, ()), *EXTRA_INPUTS.get(self.epilogue, ()))

    @property
    def per_sample(self) -> tuple[str, ...]:
        """Names of the inputs that have one row for a sample, in order."""
        extra = (*EXTRA_INPUTS.get(self.prologue, ()), *EXTRA_INPUTS.get(self.epilogue, ()))
        return tuple(name for name in extra if name in PER_SAMPLE)
