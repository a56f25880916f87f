"""Blocks that are cut out of a transformer, or stand aside while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ditpress.calibrate.blocks import CARRIED, named_arguments
from ditpress.errors import InputError, StageError
from ditpress.load.anatomy import Anatomy

Kept = Mapping[str, Sequence[int]]  # indices of the blocks that stay, rising, by the name of their list
Gate = Callable[[str], float | Tensor]  # how much of a block counts, by its full name


def block_names(transformer: nn.Module, anatomy: Anatomy) -> dict[str, list[str]]:
    """Full names of the blocks, by the name of their list, in the order they run."""
    return {
        name: [f"{name}.{index}" for index in range(len(getattr(transformer, name)))]
        for name in anatomy.block_lists(transformer)
    }


def cut_blocks(transformer: Any, anatomy: Anatomy, kept: Kept) -> None:
    """Leave only the blocks ``kept``; lists that it does not name stay as they are.

    The config of ``transformer`` follows, so that its plain class builds the smaller model by itself: the
    number of blocks, and the fields that name blocks by index.

    Raises:
        InputError: see :func:`check_kept`; nothing is changed then.
    """
    check_kept(transformer, anatomy, kept)
    for blocks in anatomy.blocks(transformer):
        if blocks.name not in kept:
            continue
        old, stay = getattr(transformer, blocks.name), list(kept[blocks.name])
        setattr(transformer, blocks.name, nn.ModuleList(old[index] for index in stay))
        named = {
            field: tuple(stay.index(index) for index in transformer.config[field] if index in stay)
            for field in blocks.indices
        }
        transformer.register_to_config(**{blocks.count: len(stay)}, **named)


def check_kept(transformer: nn.Module, anatomy: Anatomy, kept: Kept) -> None:
    """Raise InputError where ``kept`` names what is not there, or misses a block that must stay."""
    lists = anatomy.block_lists(transformer)
    for name, indices in kept.items():
        if name not in lists:
            raise InputError(
                f"prune-depth: {name} is no list of blocks of this model; expected {' or '.join(lists)}"
            )
        count = len(getattr(transformer, name))
        outside = [index for index in indices if not 0 <= index < count]
        if outside:
            raise InputError(
                f"prune-depth: {name}.{outside[0]} does not exist; {name} has the blocks 0 to {count - 1}"
            )
        if not indices:
            raise InputError(
                f"prune-depth: none of the {count} blocks of {name} would stay; keep at least one"
            )
        if list(indices) != sorted(set(indices)):
            raise InputError(
                f"prune-depth: blocks {list(indices)} of {name}; name each once, in rising order"
            )
        missing = sorted(anatomy.fixed_blocks(transformer, name) - set(indices))
        if missing:
            raise InputError(
                f"prune-depth: {name}.{missing[0]} must stay, as other parts of the model depend on it; "
                f"keep {missing[0]} too"
            )


@contextlib.contextmanager
def gated(transformer: nn.Module, names: Sequence[str], gate: Gate) -> Iterator[None]:
    """Inside, each of the blocks gives ``m block(x) + (1 - m) x`` with ``m = gate(name)``.

    With the number 0 it gives exactly what it was given, with 1 exactly what it computes; both streams of a
    joint block are mixed alike. Gradients reach ``m`` where it is a tensor (TinyFusion, Fang et al. 2025,
    eq. 6).
    """
    handles = [
        transformer.get_submodule(name).register_forward_hook(partial(_mix, name, gate), with_kwargs=True)
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entering(
    name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[list[Any], list[Any]]:
    """What came out of a block, as a list, and what went in at the same places; one may be None (SD3).

    Raises:
        StageError: the block returns something else than hidden states.
    """
    out = [output] if isinstance(output, Tensor) else list(output)
    given, streams = named_arguments(block, args, kwargs), CARRIED.get(len(out))
    if streams is None or any(stream not in given for stream in streams):
        raise StageError(
            f"{name}: returns {len(out)} values; expected hidden_states, or encoder_hidden_states and "
            "hidden_states, that it also reads; it cannot be left out"
        )
    return out, [given[stream] for stream in streams]


def _mix(
    name: str, gate: Gate, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    m = gate(name)
    out, entered = entering(name, block, args, kwargs, output)
    mixed = [None if a is None else _between(m, a, b) for a, b in zip(out, entered, strict=True)]
    return mixed[0] if isinstance(output, Tensor) else type(output)(mixed)


def _between(m: float | Tensor, out: Tensor, entered: Tensor) -> Tensor:
    if not isinstance(m, Tensor) and m in (0, 1):
        return out if m else entered
    return out * m + entered * (1 - m)
