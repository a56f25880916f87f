"""The arguments of one block after the other, in every recorded call; one block's at a time in memory."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditpress.calibrate.calibration import moved
from ditpress.calibrate.calls import Call
from ditpress.errors import InputError, StageError
from ditpress.progress import track

HIDDEN = "hidden_states"
# What a block of diffusers returns, in order: DiT and PixArt one tensor; the two streams of SD3 and Flux
# (also the single blocks of Flux, which split their result again) text first.
CARRIED = {1: (HIDDEN,), 2: ("encoder_hidden_states", HIDDEN)}
# Arguments with which a transformer changes the hidden states between its blocks, or leaves blocks out.
_BETWEEN = (
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
    "skip_layers",
)


@dataclass
class BlockInputs:
    """What one block of a list reads in every recorded call.

    Starts at the first block of the list. ``run(block)`` runs the block in every call and puts what it
    returns in the place of what it read: after it, the arguments are those of the next block. Arguments that
    are not hidden states (timestep and class embeddings, masks, rotary embeddings) are the same for all
    blocks of a list and stay as recorded.

        inputs = BlockInputs.record(transformer, "transformer_blocks", calls)
        for block in transformer.transformer_blocks:
            inputs.run(block, advance=False)   # hooks on the block's layers see all their inputs
            ...                                # change the block
            inputs.run(block)                  # the next block reads what the changed one gives

    Memory: the hidden states of all calls, once. ``timesteps`` and ``arguments`` (by name) have one entry per
    call; tensors lie on the CPU.
    """

    timesteps: list[float]
    arguments: list[dict[str, Any]]

    @classmethod
    def record(cls, transformer: nn.Module, block_list: str, calls: Sequence[Call]) -> BlockInputs:
        """The arguments of the first block of ``transformer.<block_list>`` in every call.

        Only what stands before that block is run. Lists that follow each other (Flux) are recorded one after
        the other: the second one when the first is done.

        Raises:
            InputError: no such list, or no calls, or calls that change the hidden states between blocks.
            StageError: a call did not reach the block.
        """
        blocks = getattr(transformer, block_list, None)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            raise InputError(
                f"{block_list}: not a list of blocks in {type(transformer).__name__}; check its name"
            )
        if not calls:
            raise InputError(
                "calibration without recorded calls: expected at least one; record some samples first"
            )
        first = blocks[0]
        device = device_of(transformer)
        arguments: list[dict[str, Any]] = []
        handle = first.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            with torch.no_grad():
                for call in track(calls, f"inputs of {block_list}"):
                    _check(call, type(transformer).__name__)
                    try:
                        transformer(**moved(call.kwargs, device))
                    except _Reached as reached:
                        arguments.append(
                            moved(named_arguments(first, reached.args_of_block, reached.kwargs), _CPU)
                        )
                    else:
                        raise StageError(f"{block_list}.0: was not called in a recorded call; leave it out")
        finally:
            handle.remove()
        return cls([call.timestep for call in calls], arguments)

    def __len__(self) -> int:
        return len(self.arguments)

    def call(self, block: nn.Module, index: int) -> tuple[Tensor, ...]:
        """What ``block`` returns in call ``index``: hidden_states, or encoder_hidden_states and that.

        Runs with the gradient mode of the caller, on the block's device.
        """
        result = block(**moved(self.arguments[index], device_of(block)))
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def run(self, block: nn.Module, advance: bool = True) -> None:
        """Run ``block`` in every call without gradients; with ``advance`` go on to the next block.

        Raises:
            StageError: the block returns something else than hidden states.
        """
        with torch.no_grad():
            for index in range(len(self)):
                result = self.call(block, index)
                if not advance:
                    continue
                names = CARRIED.get(len(result))
                if names is None or any(name not in self.arguments[index] for name in names):
                    raise StageError(
                        f"{type(block).__name__}: returns {len(result)} values; expected hidden_states, or "
                        "encoder_hidden_states and hidden_states, that it also reads; it cannot be walked"
                    )
                # None: the text stream of the last SD3 block has no output, and nothing reads it.
                fresh = {name: moved(value, _CPU) for name, value in zip(names, result, strict=True)}
                self.arguments[index] = self.arguments[index] | fresh

    def fork(self) -> BlockInputs:
        """An independent walker at the same block: a student's beside the teacher's. Shares the tensors."""
        return BlockInputs(list(self.timesteps), list(self.arguments))


def device_of(module: nn.Module) -> torch.device:
    """Where the first tensor of ``module`` lies; the CPU for one without tensors."""
    return next((tensor.device for tensor in module.state_dict(keep_vars=True).values()), _CPU)


_CPU = torch.device("cpu")


class _Reached(Exception):
    """Ends a call of the transformer at its first block; carries the arguments."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args_of_block = args
        self.kwargs = kwargs


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args, kwargs)


def named_arguments(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a block was called with, by the names of its ``forward``."""
    return dict(inspect.signature(block.forward).bind(*args, **kwargs).arguments)


def _check(call: Call, transformer: str) -> None:
    for name in _BETWEEN:
        if call.kwargs.get(name) is not None:
            raise InputError(
                f"{transformer}: the recorded calls give {name}, which acts between blocks; "
                "record calls without it"
            )
