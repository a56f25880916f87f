"""Processes that work together, as torchrun starts them: who we are, and sums over all."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ditpress.errors import InputError

# The others wait while the first one does what is not shared out: calibration, quantization, images.
PATIENCE = timedelta(days=14)


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; every one calls the same methods in the same order."""

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over all processes: the same bits in each of them."""
        if self.size > 1:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def shared(self, value: Any = None) -> Any:
        """What the first process gives, on every one."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Return when every process has come here."""
        self.sum_([torch.zeros(1)])


ALONE = Processes(0, 1)


def join() -> Processes:
    """The processes that torchrun started, joined by gloo for CPUs and nccl for GPUs; else this one alone.

    With GPUs the current device becomes that of the local rank.

    Raises:
        InputError: torchrun's variables are there, but not all of them, or odd ones.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return ALONE
    if not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if not size.isdigit() or missing:
            raise InputError(
                f"WORLD_SIZE is {size}, and {' and '.join(missing) or 'the rest'} missing; start the "
                "processes by torchrun"
            )
        rank = os.environ["RANK"]
        if not rank.isdigit() or int(rank) >= int(size):
            raise InputError(
                f"RANK {rank} of WORLD_SIZE {size}: expected a rank below it, as torchrun sets them"
            )
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
        # Gloo's threads let go of tensors, for which they need Python: they have to end before it does,
        # or the process is aborted after its work is done.
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size())
