"""A loaded model in each of the engines, as a function of nothing.

An engine has ``load(case)`` and ``step(case)``, which returns what the worker times. Inputs and outputs lie
in fixed buffers: what is timed is the model, not the host.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from speed.replicate import input_name
from speed.workloads import WORKLOADS, copies, linear_shape, split_case


class Engine:
    """What all engines share.

    Args:
        job: "workload", "artifact" and "inputs" (folders), "threads", "quick", "options", "library", "model".
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.threads = int(job["threads"])

    def inputs(self, case: str) -> dict[str, np.ndarray]:
        """The arrays of one call by name."""
        return dict(np.load(Path(self.job["inputs"]) / f"{case}.npz"))

    def loaded(self) -> None:
        """Called once, after the last ``load``."""

    def file(self, model: str, suffix: str) -> Path:
        return Path(self.job["artifact"]) / model / f"model.{suffix}"


def pin_this_thread(cpu: int) -> None:
    """Keep the calling thread on one CPU: two threads of a pool must not wait for each other on the same."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})


class OnnxRuntime(Engine):
    """ONNX Runtime on the CPU. Its threads do not spin between two calls: others compute then."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import onnxruntime

        self.ort = onnxruntime
        self.sessions: dict[str, Any] = {}

    def load(self, case: str) -> None:
        model = split_case(case)[0]
        if model in self.sessions:
            return
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads > 1:  # the calling thread is the first; ONNX Runtime counts processors from one
            others = ";".join(str(cpu + 1) for cpu in self.job["cpus"][1 : self.threads])
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        if self.job["library"]:
            options.register_custom_ops_library(self.job["library"])
        self.sessions[model] = self.ort.InferenceSession(
            str(self.file(model, "onnx")), options, providers=["CPUExecutionProvider"]
        )

    def loaded(self) -> None:
        pin_this_thread(self.job["cpus"][0])

    def step(self, case: str) -> Callable[[], Any]:
        session = self.sessions[split_case(case)[0]]
        arrays = self.inputs(case)
        values = {name: self.ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        feeds = {node.name: values[input_name(node.name)] for node in session.get_inputs()}
        names = [node.name for node in session.get_outputs()]
        results = session.run_with_ort_values(names, feeds)
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        # The copies of a linear write one buffer in turn, as the layers of a model do.
        buffers: dict[tuple[int, ...], Any] = {}
        for name, result in zip(names, results, strict=True):
            binding.bind_ortvalue_output(name, buffers.setdefault(tuple(result.shape()), result))
        return lambda: session.run_with_iobinding(binding)


class OpenVino(Engine):
    """OpenVINO on the CPU: one stream, tuned for latency."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import openvino

        self.ov = openvino
        self.core = openvino.Core()
        self.compiled: dict[str, Any] = {}
        self.buffers: list[dict[tuple[int, ...], np.ndarray]] = []  # OpenVINO does not keep them alive

    def load(self, case: str) -> None:
        graph = self.core.read_model(self.file(split_case(case)[0], "xml"))
        arrays = self.inputs(case)  # its best case: shapes known when it compiles
        graph.reshape({port.any_name: list(arrays[input_name(port.any_name)].shape) for port in graph.inputs})
        properties = {
            "INFERENCE_NUM_THREADS": str(self.threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": "YES",
            **dict(self.job["options"]),
        }
        self.compiled[case] = self.core.compile_model(graph, "CPU", properties)

    def step(self, case: str) -> Callable[[], Any]:
        compiled = self.compiled[case]
        request = compiled.create_infer_request()
        arrays = self.inputs(case)
        tensors = {name: self.ov.Tensor(array) for name, array in arrays.items()}
        for port in compiled.inputs:
            request.set_tensor(port, tensors[input_name(port.any_name)])
        request.infer()
        buffers: dict[tuple[int, ...], np.ndarray] = {}
        for port in compiled.outputs:
            shape = tuple(request.get_tensor(port).shape)
            buffers.setdefault(shape, np.empty(shape, np.float32))
            request.set_tensor(port, self.ov.Tensor(buffers[shape], shared_memory=True))
        self.buffers.append(buffers)
        return request.infer


class Torch(Engine):
    """PyTorch, eager, on the model that ``models`` builds. Its environment pins its threads."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        import torch

        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.modules: dict[str, list[Any]] = {}
        self.calls: dict[str, dict[str, Any]] = {}

    def load(self, case: str) -> None:
        from speed import models

        model, quick = split_case(case)[0], self.job["quick"]
        timed = WORKLOADS[self.job["workload"]]
        if model in self.modules:
            return
        if timed.is_linear:
            shape = linear_shape(model)
            count = copies(shape, timed.max_copies, quick)
            self.modules[model] = [self._made(models.build_linear(*shape)[0]) for _ in range(count)]
        else:
            module, self.calls[model] = models.build(timed.name, quick)
            self.modules[model] = [self._made(module)]

    def _made(self, module: Any) -> Any:
        if self.job["model"] == "bf16":
            return module.to(self.torch.bfloat16)
        from ditpress.fused import fuse
        from speed import ours

        compressed = ours.compress(module, self.job["model"])
        fuse(compressed)  # as ``ditpress.load`` does
        return compressed

    def step(self, case: str) -> Callable[[], Any]:
        model = split_case(case)[0]
        if model in self.calls:
            call = self.calls[model]
        else:
            arrays = self.inputs(case)
            call = {"hidden_states": self.torch.from_numpy(arrays["hidden_states"]), "return_dict": False}
        if self.job["model"] == "bf16":
            call = {name: self._bf16(value) for name, value in call.items()}
        modules = self.modules[model]

        def step() -> None:
            for module in modules:
                module(**call)

        return step

    def _bf16(self, value: Any) -> Any:
        is_float = isinstance(value, self.torch.Tensor) and value.is_floating_point()
        return value.to(self.torch.bfloat16) if is_float else value


ENGINES: dict[str, type[OnnxRuntime] | type[OpenVino] | type[Torch]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "torch": Torch,
}
