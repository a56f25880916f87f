"""Processes that work together: how they find each other, and how they end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from ditpress.errors import InputError
from ditpress.processes import join

# What is registered first is called last: after all that `join` has left to be done at the end.
WORKER = """
import atexit
import torch
import torch.distributed

atexit.register(lambda: print("joined" if torch.distributed.is_initialized() else "parted"))

from ditpress.processes import join

processes = join()
rank = torch.tensor([float(processes.rank)])
processes.sum_([rank])
print(processes.size, rank.item(), processes.shared(f"from {processes.rank}"))
"""


def test_they_part_before_python_ends() -> None:
    """Threads of gloo that outlive Python abort the process, and its launcher reports a failure."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "WORLD_SIZE": "3",
                "RANK": str(rank),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    for process in together:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert printed.splitlines() == ["3 3.0 from 0", "parted"]


def test_missing_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, and RANK .*missing; start .* by torchrun"):
        join()


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "many"), ("0", "0")])
def test_odd_ranks_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    for name, value in {
        "RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun"):
        join()
