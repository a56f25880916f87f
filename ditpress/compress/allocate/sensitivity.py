"""What the transformer's output loses when one layer is replaced by a low-bit one, the others float."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditpress.calibrate.calls import Call
from ditpress.errors import StageError
from ditpress.load.modules import replace_module
from ditpress.progress import track
from ditpress.validate.paired import first_tensor

Make = Callable[[], nn.Module]  # the low-bit module of one layer in one format, made when it is measured


class OutputError:
    """The error of a transformer's output on recorded calls, against what it gave at the beginning.

    Args:
        transformer: as it should answer.
        calls: recorded calls; their outputs are kept.
    """

    def __init__(self, transformer: nn.Module, calls: Sequence[Call]) -> None:
        self.calls = list(calls)
        with torch.inference_mode():
            self.outputs = [_output(transformer, call) for call in self.calls]

    @torch.inference_mode()
    def measure(self, transformer: nn.Module) -> float:
        """Mean over the timesteps of ‖y - ŷ‖² / ‖y‖²: each timestep counts alike, however large its output.

        Raises:
            StageError: an output is not finite.
        """
        signal: dict[float, float] = defaultdict(float)
        noise: dict[float, float] = defaultdict(float)
        for call, expected in zip(self.calls, self.outputs, strict=True):
            y = expected.double()
            signal[call.timestep] += float(y.square().sum())
            noise[call.timestep] += float((_output(transformer, call).double() - y).square().sum())
        tiny = torch.finfo(torch.float64).tiny
        mean = sum(noise[timestep] / max(signal[timestep], tiny) for timestep in signal) / len(signal)
        if not torch.isfinite(torch.tensor(mean)):
            raise StageError(
                "mixed: the transformer's output is NaN or infinite with a layer in low bits; leave out the "
                "candidate with the fewest bits"
            )
        return mean


def sensitivity(
    transformer: nn.Module, error: OutputError, variants: Mapping[str, Mapping[int, Make]]
) -> dict[str, dict[int, float]]:
    """The output error of every layer in every format, one at a time; HAWQ's and ZeroQ's Ω_i(k), measured.

    The transformer is as before when it ends.

    Args:
        transformer: the float model, which is run.
        error: on which calls.
        variants: layer name -> format -> what makes the layer's module in it.

    Returns:
        layer name -> format -> :meth:`OutputError.measure`.
    """
    found: dict[str, dict[int, float]] = {}
    for name, makes in track(variants.items(), "sensitivity", len(variants)):
        found[name] = {}
        for index, make in makes.items():
            with replaced(transformer, {name: make}):
                found[name][index] = error.measure(transformer)
    return found


@contextmanager
def replaced(transformer: nn.Module, makes: Mapping[str, Make]) -> Iterator[None]:
    """The transformer with some layers replaced, inside the block."""
    swapped: list[tuple[nn.Module, nn.Module]] = []
    try:
        for name, make in makes.items():
            old, new = transformer.get_submodule(name), make()
            replace_module(transformer, old, new)
            swapped.append((old, new))
        yield
    finally:
        for old, new in reversed(swapped):
            replace_module(transformer, new, old)


def _output(transformer: nn.Module, call: Call) -> Tensor:
    return first_tensor(transformer(**call.kwargs)).float().cpu()
