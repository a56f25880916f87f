"""Fused ``ditpress`` nodes in place of the operators around low-bit layers.

One rule a file, each a function of the graph that returns how often it fired. A rule rewrites only what it
recognises whole, shapes included; everything else stays as the exporter wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir
import onnx_ir.passes.common as passes

from ditpress.errors import InputError
from ditpress.export.functions import attach_functions
from ditpress.export.fuse.attention import fuse_attention
from ditpress.export.fuse.columns import fuse_columns
from ditpress.export.fuse.gate import fuse_gate
from ditpress.export.fuse.gelu import fuse_gelu
from ditpress.export.fuse.merge import fuse_merge
from ditpress.export.fuse.norm import fuse_norm

RULES: dict[str, Callable[[ir.Graph], int]] = {
    "norm": fuse_norm,
    "gelu": fuse_gelu,
    "gate": fuse_gate,
    "merge": fuse_merge,
    "attention": fuse_attention,
    "columns": fuse_columns,
}
"""All rules by name, in the order in which they run: q, k and v merge once the norm is in them, and shift,
modulation and gate become columns once they are inputs of nodes."""


def rule_names(fuse: bool | Collection[str]) -> tuple[str, ...]:
    """The rules that ``fuse`` asks for, in their order: all, none, or those named.

    Raises:
        InputError: a name that is no rule.
    """
    if isinstance(fuse, bool):
        return tuple(RULES) if fuse else ()
    wanted = {fuse} if isinstance(fuse, str) else set(fuse)
    unknown = sorted(wanted - set(RULES))
    if unknown:
        raise InputError(f"unknown fusion {unknown[0]!r}: expected some of {', '.join(RULES)}")
    return tuple(name for name in RULES if name in wanted)


def apply_rules(model: ir.Model, names: Collection[str] = tuple(RULES)) -> dict[str, int]:
    """Rewrite the graph of ``model`` in place by the rules of these names.

    Returns:
        How often each rule fired. Where none did, the model is as before.
    """
    fired = {name: RULES[name](model.graph) for name in rule_names(names)}
    if any(fired.values()):
        passes.RemoveUnusedNodesPass()(model)
        attach_functions(model)
        passes.NameFixPass()(model)
    return fired
