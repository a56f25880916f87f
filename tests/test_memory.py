"""What was freed between blocks that stay goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

from ditpress.memory import release


def resident() -> int:
    """Private memory of this process, bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc"
)
def test_freed_tensors_between_kept_ones_are_given_back() -> None:
    size, count = 96 << 10, 800  # below glibc's threshold for mappings of their own
    freed = [torch.ones(size // 4) for _ in range(count)]
    kept = [tensor.clone() for tensor in freed[::8]]
    pairs = [(torch.ones(size // 4), torch.ones(1024)) for _ in range(count)]
    kept += [small for _, small in pairs]
    before = resident()
    del freed, pairs
    release()
    assert before - resident() > 1.5 * size * count  # of the 2 * size * count that was freed
    assert all(bool((tensor == 1).all()) for tensor in kept)
