"""A linear several times in one file, each time with other weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import compose, numpy_helper

SEPARATOR = "__"


def input_name(name: str) -> str:
    """The input that a graph input stands for: the copies "copy3__hidden_states" all get the same array."""
    return name.rpartition(SEPARATOR)[2]


def replicate(path: Path, count: int) -> None:
    """Write the model at ``path`` with its graph ``count`` times side by side.

    Each copy has inputs and outputs of its own, so that no optimizer lets the copies share the quantization
    of their input, and rows of every matrix in another order, so that none finds equal weights.
    """
    model = onnx.load(path)
    merged = onnx.GraphProto(name=model.graph.name)
    for index in range(count):
        copy = onnx.GraphProto()
        copy.CopyFrom(model.graph)
        for tensor in copy.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim == 2:
                tensor.CopyFrom(numpy_helper.from_array(np.roll(array, index, axis=0), tensor.name))
        compose.add_prefix_graph(copy, f"copy{index}{SEPARATOR}", inplace=True)
        for field in ("node", "initializer", "input", "output", "value_info"):
            getattr(merged, field).extend(getattr(copy, field))
    model.graph.CopyFrom(merged)
    onnx.save(model, path)
