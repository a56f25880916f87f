"""The machine and the versions that a report was made with."""

from __future__ import annotations

import platform
from pathlib import Path

import diffusers
import onnxruntime
import torch

from ditpress.kernels.cpu import isa
from ditpress.validate.report import Environment


def environment() -> Environment:
    """Read the environment of this process."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        onnxruntime=onnxruntime.__version__,
        cpu=cpu_name(),
        isa=isa(),
        threads=torch.get_num_threads(),
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name, or the architecture where the system does not tell it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The model name of the GPU or of the processor, this with the instruction set that torch takes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {cpu_name()} {torch.backends.cpu.get_cpu_capability()}"
