"""The processes of ``torchrun`` that share one measurement."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist

from ditpress.errors import InputError

PATIENCE = timedelta(days=7)  # processes wait for the slowest one


def rank_and_count() -> tuple[int, int]:
    """Number of this process and how many there are, as ``torchrun`` sets them; (0, 1) without it.

    Raises:
        InputError: the variables hold something else.
    """
    try:
        rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise InputError("RANK and WORLD_SIZE: expected numbers, as torchrun sets them") from None
    if not 0 <= rank < count:
        raise InputError(
            f"RANK {rank} of WORLD_SIZE {count}: expected a rank below it, as torchrun sets them"
        )
    return rank, count


def wait_for_all() -> None:
    """Return when every process has come here."""
    if rank_and_count()[1] == 1:
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    dist.barrier()
