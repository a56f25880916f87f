"""From the keyword arguments of a recorded call to the inputs of a graph, and back.

Tensors become graph inputs under the name of their keyword (``added_cond_kwargs.resolution`` for one inside a
dictionary); everything else (None, booleans, numbers, text) is a constant of the exported graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditpress.errors import InputError

OUTPUT_NAME = "sample"
SAMPLE_INPUT = "hidden_states"
# Position tables of the Flux family are [tokens, 3], one for the whole batch.
SHARED_INPUTS = frozenset({"img_ids", "txt_ids"})


def flatten(kwargs: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split keyword arguments into tensors and constants, nested dictionaries by dotted names.

    ``return_dict`` is dropped: the graph returns its sample whatever the caller unpacks.

    Raises:
        InputError: a value that is neither a tensor, a dictionary nor a plain constant.
    """
    tensors: dict[str, Tensor] = {}
    constants: dict[str, Any] = {}
    for key, value in kwargs.items():
        name = prefix + key
        if name == "return_dict":
            continue
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            inner_tensors, inner_constants = flatten(value, f"{name}.")
            tensors |= inner_tensors
            constants |= inner_constants
        elif value is None or isinstance(value, bool | int | float | str):
            constants[name] = value
        else:
            raise InputError(
                f"transformer argument {name!r} is a {type(value).__name__}: ONNX export takes tensors, "
                "dictionaries of tensors, numbers, text and None"
            )
    return tensors, constants


def unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`: dotted names become nested dictionaries."""
    kwargs: dict[str, Any] = {}
    for name, value in values.items():
        *folders, leaf = name.split(".")
        target = kwargs
        for folder in folders:
            target = target.setdefault(folder, {})
        target[leaf] = value
    return kwargs


@dataclass(frozen=True)
class Signature:
    """What an exported graph takes.

    Attributes:
        tensors: names of the inputs, in order.
        batched: those whose first dimension is the batch.
        constants: the other arguments, fixed in the graph.
    """

    tensors: tuple[str, ...]
    batched: frozenset[str]
    constants: dict[str, Any]

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Signature:
        """Read the signature off one call. Its batch is the first dimension of ``hidden_states``.

        Raises:
            InputError: the call has no ``hidden_states`` tensor.
        """
        tensors, constants = flatten(kwargs)
        if SAMPLE_INPUT not in tensors:
            raise InputError(
                f"recorded call has no tensor {SAMPLE_INPUT!r}: expected the keyword arguments of a "
                f"diffusers transformer, got {', '.join(sorted(kwargs)) or 'none'}"
            )
        batch = tensors[SAMPLE_INPUT].shape[0]
        batched = {
            name
            for name, tensor in tensors.items()
            if tensor.ndim > 0 and tensor.shape[0] == batch and name not in SHARED_INPUTS
        }
        return cls(tuple(tensors), frozenset(batched), constants)

    def arguments(self, kwargs: Mapping[str, Any], batch: int | None = None) -> dict[str, Tensor]:
        """The input tensors of a call, with ``batch`` samples where given: rows repeat in turn or are cut."""
        tensors, _ = flatten(kwargs)
        missing = [name for name in self.tensors if name not in tensors]
        if missing:
            raise InputError(f"call lacks the tensor {missing[0]!r}, which the recorded call had")
        values = {name: tensors[name].detach() for name in self.tensors}
        if batch is not None:
            for name in self.batched:
                rows = torch.arange(batch) % values[name].shape[0]
                values[name] = values[name][rows]
        return {name: value.contiguous() for name, value in values.items()}


class Keywords(nn.Module):
    """A transformer as a function of positional tensors, for tracing.

    Args:
        transformer: called with keyword arguments and ``return_dict=False``; the first result is the sample.
        signature: names of the tensors and values of the constants.
    """

    MODULE = "transformer"  # its attribute here, so the first part of every name in the graph

    def __init__(self, transformer: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.transformer = transformer
        self.names = signature.tensors
        self.constants = signature.constants

    def forward(self, *tensors: Tensor) -> Tensor:
        kwargs = unflatten({**dict(zip(self.names, tensors, strict=True)), **self.constants})
        return self.transformer(**kwargs, return_dict=False)[0]
