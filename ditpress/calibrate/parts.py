"""Recorded calls by rows: some at a time bound the memory of training, those of many calls make a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
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
        batch = rows_of(call)
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


def rows_of(call: Call) -> int:
    """Rows of a call's batch. Raises InputError for a call without ``hidden_states``."""
    if not isinstance(call.kwargs.get("hidden_states"), Tensor):
        raise InputError("a recorded call without hidden_states: it cannot be cut into rows")
    return int(call.kwargs["hidden_states"].shape[0])


def join_rows(picked: Sequence[tuple[Call, int]]) -> dict[str, Any]:
    """The arguments of one call that has, row by row, the named row of a recorded call.

    Timesteps become a tensor, one for each row; what has no rows, such as positions, is that of the first.

    Raises:
        InputError: calls of different arguments or shapes.
    """
    places = [(row, rows_of(call)) for call, row in picked]
    try:
        return cast(dict[str, Any], _joined([call.kwargs for call, _ in picked], places))
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"recorded calls of different arguments cannot share a batch: {error}") from error


def _joined(values: Sequence[Any], places: Sequence[tuple[int, int]], name: str = "") -> Any:
    """``places``: row and batch size of each value."""
    first = values[0]
    if name in _UNBATCHED:
        return first
    if name == "timestep" and not (isinstance(first, Tensor) and first.dim()):
        return torch.stack([torch.as_tensor(value) for value in values])
    if isinstance(first, Tensor) and first.dim() and first.shape[0] == places[0][1]:
        return torch.cat([value[row : row + 1] for value, (row, _) in zip(values, places, strict=True)])
    if isinstance(first, dict):
        return {key: _joined([value[key] for value in values], places, key) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined([value[index] for value in values], places) for index in range(len(first)))
    return first
