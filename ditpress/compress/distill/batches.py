"""Which recorded calls a training step sees: one from every part of the range of timesteps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def stratified(timesteps: Sequence[float], count: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless minibatches of ``count`` indices of calls, one from each of ``count`` strata of timesteps.

    The timesteps that occur, in order, are cut into ``count`` runs of equal length (to one). Every stratum is
    a deck of its calls: shuffled, dealt to the end, shuffled again, so no call is seen twice before all were
    seen once. With fewer distinct timesteps than ``count`` the strata share timesteps.

    Args:
        timesteps: of every call, by index.
        count: calls a minibatch.
        generator: all the randomness there is.
    """
    distinct = sorted(set(timesteps))
    decks = []
    for part in range(count):
        first = part * len(distinct) // count
        last = max(first + 1, (part + 1) * len(distinct) // count)
        wanted = set(distinct[first:last])
        members = [index for index, timestep in enumerate(timesteps) if timestep in wanted]
        decks.append(_dealt(members, generator))
    while True:
        yield [next(deck) for deck in decks]


def _dealt(members: list[int], generator: torch.Generator) -> Iterator[int]:
    while True:
        for place in torch.randperm(len(members), generator=generator).tolist():
            yield members[place]
