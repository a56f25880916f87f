"""Threads: all the machine has, at most two; with several workers one for each, for more would only spin.

The benchmarks are scripts, not part of the package: their folder goes on the path.
"""

import os
import sys
from pathlib import Path

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it, and for the programs that tests start

import torch

torch.set_num_threads(min(2, torch.get_num_threads()))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
