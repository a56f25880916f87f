"""Statistics of the inputs of layers, block by block, while the blocks change one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ditpress.calibrate.blocks import BlockInputs
from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import Call
from ditpress.calibrate.statistics import Statistic, Want, new_statistic
from ditpress.errors import InputError, StageError
from ditpress.memory import release

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser

LEAST_TIMESTEPS = 2  # inputs at a single timestep say nothing about the others


def walk(
    denoiser: Denoiser, wanted: Mapping[str, Sequence[str]], calls: Sequence[Call], sequential: bool
) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Statistics of the inputs of the layers in ``wanted``, some layers at a time.

    First come the layers that belong to no block, then those of block after block; where nothing is wanted of
    any layer, all come at once and no call is run. Between two items the caller may replace the layers of
    the first. Memory: the statistics of one block, and the hidden states of
    all calls.

    Args:
        denoiser: its transformer is run.
        wanted: names of statistics for every layer by full name; layers with none are yielded with none.
        calls: the recorded calls.
        sequential: a block reads what the blocks before it give as they are now, changed; as GPTQ does it
            (Frantar et al. 2023, section 4). Else as they were: one pass over the blocks in place of two.

    Yields:
        layer name -> statistic name -> tensor.

    Raises:
        InputError: too few calls; names what to raise.
        StageError: a layer was never called.
    """
    if not any(wanted.values()):
        yield {name: {} for name in wanted}
        return
    transformer = denoiser.transformer
    check_timesteps(calls)
    left = dict(wanted)
    inside = {
        (block_list, index): [name for name in wanted if name.startswith(f"{block_list}.{index}.")]
        for block_list in denoiser.anatomy.block_lists(transformer)
        for index in range(len(getattr(transformer, block_list)))
    }
    in_blocks = {name for names in inside.values() for name in names}
    outside = [name for name in wanted if name not in in_blocks]
    if outside:
        wants = [Want(name, statistic) for name in outside for statistic in left[name]]
        found = Calibration(list(calls)).collect(transformer, wants)
        yield {
            name: {statistic: found[Want(name, statistic)] for statistic in left[name]} for name in outside
        }
    for block_list in denoiser.anatomy.block_lists(transformer):
        blocks = getattr(transformer, block_list)
        inputs = BlockInputs.record(transformer, block_list, calls)
        for index, block in enumerate(blocks):
            names = inside[block_list, index]
            with watched(transformer, {name: wanted[name] for name in names}) as statistics:
                inputs.run(block, advance=not sequential)
            yield {
                name: {key: statistic.result() for key, statistic in of_layer.items()}
                for name, of_layer in statistics.items()
            }
            del statistics
            release()  # the caller made float weights smaller
            if sequential:
                inputs.run(block)


def check_timesteps(calls: Sequence[Call]) -> None:
    """Raises InputError for calls at too few timesteps to learn from."""
    timesteps = len({call.timestep for call in calls})
    if timesteps < LEAST_TIMESTEPS:
        raise InputError(
            f"recorded calls at {timesteps} timesteps, expected {LEAST_TIMESTEPS} or more to learn "
            "the inputs of the layers from; raise calibration.steps"
        )


@contextmanager
def watched(
    transformer: nn.Module, wanted: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, dict[str, Statistic]]]:
    """Statistics, by layer and name, that see every input of their layers inside the block.

    Raises:
        StageError: at the end, for a layer that was never called.
    """
    statistics = {name: {key: new_statistic(key) for key in keys} for name, keys in wanted.items()}
    seen: set[str] = set()

    def hook_of(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.add(name)
            for statistic in statistics[name].values():
                statistic.update(args[0])

        return hook

    handles = [
        transformer.get_submodule(name).register_forward_pre_hook(hook_of(name))
        for name, keys in wanted.items()
        if keys
    ]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
    missed = [name for name, keys in wanted.items() if keys and name not in seen]
    if missed:
        raise StageError(f"{missed[0]}: was never called while the recorded calls ran; skip it")
