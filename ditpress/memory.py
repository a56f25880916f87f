"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def release() -> None:
    """Give the pages of freed tensors back.

    glibc keeps what was freed between blocks that stay: after a block's weights became codes, as much as the
    weights took. Other C libraries have no such call, and are left alone.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
