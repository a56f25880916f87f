"""Recorded calls in smaller pieces: some rows of the batch at a time bound the memory of training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ditpress.calibrate.calls import Call
from ditpress.errors import InputError

_UNBATCHED = ("img_ids", "txt_ids")  # positions of tokens, the same for every row of a batch


def split_calls(calls: Iterable[Call], rows: int) -> list[Call]:
    """The same work in calls of at most ``rows`` rows, in order; tensors are views.

    Every tensor argument whose first dimension is the batch (that of ``hidden_states``) is cut.

    Raises:
        InputError: ``rows`` is below 1, or a call has no ``hidden_states``.
    """
    if rows < 1:
        raise InputError(f"calls of {rows} rows: expected at least 1")
    parts = []
    for call in calls:
        if not isinstance(call.kwargs.get("hidden_states"), Tensor):
            raise InputError("a recorded call without hidden_states: it cannot be cut into rows")
        batch = call.kwargs["hidden_states"].shape[0]
        for start in range(0, batch, rows):
            parts.append(Call(call.timestep, _cut(call.kwargs, slice(start, start + rows), batch)))
    return parts


def _cut(value: Any, rows: slice, batch: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {key: item if key in _UNBATCHED else _cut(item, rows, batch) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cut(item, rows, batch) for item in value)
    return value
