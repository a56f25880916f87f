"""Passes over the recorded calls, one for all the statistics that are wanted together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditpress.calibrate.calls import Call
from ditpress.calibrate.statistics import Statistic, Want, new_statistic, statistic_class
from ditpress.errors import InputError, StageError
from ditpress.progress import track


@dataclass
class Calibration:
    """Recorded calls, and how to learn from them."""

    calls: list[Call]

    def collect(self, transformer: nn.Module, wants: Iterable[Want]) -> dict[Want, Tensor]:
        """Run all calls through ``transformer`` once and return every wanted statistic.

        Only the wanted layers are hooked, and no activation outlives its batch. Tensors of the calls are
        moved to the device of the transformer.

        Raises:
            InputError: a layer or a statistic does not exist, or there are no calls.
            StageError: a wanted layer was never called.
        """
        wanted = {want: new_statistic(want.statistic) for want in wants}
        if not wanted:
            return {}
        if not self.calls:
            raise InputError(
                "calibration without recorded calls: expected at least one; record some samples first"
            )
        seen: set[str] = set()
        handles = []
        try:
            for layer in dict.fromkeys(want.layer for want in wanted):
                statistics = [statistic for want, statistic in wanted.items() if want.layer == layer]
                hook = _feeds(statistics, layer, seen)
                handles.append(_layer(transformer, layer).register_forward_pre_hook(hook))
            device = next((p.device for p in transformer.parameters()), torch.device("cpu"))
            with torch.no_grad():
                for call in track(self.calls, "statistics"):
                    transformer(**moved(call.kwargs, device))
        finally:
            for handle in handles:
                handle.remove()
        missed = sorted({want.layer for want in wanted} - seen)
        if missed:
            raise StageError(f"{missed[0]}: was never called while the recorded calls ran; leave it out")
        return {want: statistic.result() for want, statistic in wanted.items()}

    def collect_in_parts(
        self, transformer: nn.Module, wants: Iterable[Want], limit_bytes: int
    ) -> Iterator[dict[Want, Tensor]]:
        """Like :meth:`collect`, in parts whose statistics hold at most ``limit_bytes`` together.

        Second moments of every layer of a DiT-XL/2 are 2.8 GB. All wants of a layer come in one part, layers
        in the order of ``wants``; a layer beyond the limit is a part of its own. The calls run once per part,
        when it is asked for: what the caller changed in ``transformer`` by then is what the next part sees.
        """
        layers: dict[str, list[Want]] = {}
        for want in dict.fromkeys(wants):
            layers.setdefault(want.layer, []).append(want)
        part: list[Want] = []
        size = 0
        for name, asked in layers.items():
            channels = int(getattr(_layer(transformer, name), "in_features", 0))
            needed = sum(statistic_class(want.statistic).bytes_for(channels) for want in asked)
            if part and size + needed > limit_bytes:
                yield self.collect(transformer, part)
                part, size = [], 0
            part += asked
            size += needed
        if part:
            yield self.collect(transformer, part)


def _feeds(statistics: list[Statistic], layer: str, seen: set[str]) -> Callable[[nn.Module, tuple], None]:
    def hook(module: nn.Module, args: tuple) -> None:
        seen.add(layer)
        for statistic in statistics:
            statistic.update(args[0])

    return hook


def _layer(transformer: nn.Module, name: str) -> nn.Module:
    try:
        return transformer.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"{name}: no such layer in {type(transformer).__name__}; check its name") from error


def moved(value: Any, device: torch.device) -> Any:
    """``value`` with all its tensors on ``device``, also those inside lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    return value
