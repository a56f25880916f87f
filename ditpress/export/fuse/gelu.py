"""GELU after a low-bit layer becomes its epilogue."""

from __future__ import annotations

import onnx_ir as ir

from ditpress.export.functions.kinds import GELU_TANH
from ditpress.export.fuse.pattern import only_user, qlinear_nodes, take_over, text


def fuse_gelu(graph: ir.Graph) -> int:
    """GELU in its tanh form (the exporter writes it as Gelu) of a QLinear node that nothing else reads.

    Returns:
        How many were fused.
    """
    fired = 0
    for node in qlinear_nodes(graph):
        gelu = only_user(node.outputs[0])
        if gelu is None or gelu.domain != "" or gelu.op_type != "Gelu" or len(node.outputs) > 1:
            continue
        tanh = "approximate" in gelu.attributes and text(gelu, "approximate") == "tanh"
        if tanh and text(node, "epilogue") == "":
            result = gelu.outputs[0]
            node.attributes["epilogue"] = ir.AttrString("epilogue", GELU_TANH)
            take_over(result, node.outputs[0])
            graph.remove(gelu, safe=True)
            fired += 1
    return fired
