"""Threads: all the machine has, at most two; with several workers one for each, for more would only spin.

Rows of reference images: kept for this session and shared by its workers; the user's own are left alone.

The benchmarks are scripts, not part of the package: their folder goes on the path.

Kernels: those for AVX2 where the CPU multiplies bfloat16. End-to-end tests hold ONNX Runtime nearer to
PyTorch than attention with such products is (``docs/kernels.md``), and were written where there are none. The
tests of kernels go through every instruction set by name; DITPRESS_ISA names another one for the rest.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it, and for the programs that tests start
if Path("/proc/cpuinfo").is_file() and "avx512_bf16" in Path("/proc/cpuinfo").read_text(errors="replace"):
    os.environ.setdefault("DITPRESS_ISA", "avx2")

import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # a worker has a folder of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITPRESS_CACHE", str(shared / "ditpress-cache"))
        yield
