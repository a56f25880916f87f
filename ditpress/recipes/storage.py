"""How linears are stored, in words, for tables."""

from __future__ import annotations

from torch import nn

from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import LowRankLinear, SubspaceLinear, TransformedLinear, Wrapper, layers_of


def storage(module: nn.Module) -> str:
    """How a linear, with all its wrappers, is stored: ``int4, group 64, int8 inputs, low rank 32``."""
    *wrappers, linear = layers_of(module)
    if isinstance(linear, QuantizedLinear):
        group = "channel" if linear.group_size == linear.in_features else f"group {linear.group_size}"
        inputs = [] if linear.activation == "none" else [f"{linear.activation} inputs"]
        words = [linear.format, group, *inputs]
    else:
        words = ["float"]
    return ", ".join(words + [_words(wrapper) for wrapper in wrappers if isinstance(wrapper, Wrapper)])


def _words(wrapper: Wrapper) -> str:
    if isinstance(wrapper, LowRankLinear):
        return f"low rank {wrapper.describe()['rank']}"
    if isinstance(wrapper, SubspaceLinear):
        return f"subspace of {wrapper.describe()['rank']}"
    return wrapper.transform.kind if isinstance(wrapper, TransformedLinear) else wrapper.kind
