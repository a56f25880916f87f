"""What the figures must be: each requirement with its limit, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from speed.measure import ONE_THREAD
from speed.results import Results, ours_to, peers, seconds, to_ours
from speed.workloads import WORKLOADS, linear_shape, split_case

OURS = "ours-w4a8"
FORMATS = ("ours-w4a8", "ours-w4a8-exact", "ours-w8a8", "ours-fp4", "ours-ternary", "ours-vq")
MANY_ROWS = 256
MEMORY_FACTOR, MEMORY_MORE = 1.25, 150e6


@dataclass(frozen=True)
class Bound:
    """A requirement.

    Attributes:
        text: what is compared.
        limit: the bound.
        value: reads the figure off the results; None: not measured.
        at_least: the figure must be at least ``limit``, else at most.
        form: how both are written.
    """

    text: str
    limit: float
    value: Callable[[Results], float | None]
    at_least: bool = False
    form: str = "{:.2f}"

    def holds(self, results: Results) -> bool | None:
        """None: not measured."""
        value = self.value(results)
        if value is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


def share_of_peak(results: Results, workload: str, threads: int, name: str, case: str) -> float | None:
    """2 M N K / time over the measured int8 peak; None: the linear or the peak was not measured."""
    entry, peak = results.entry(workload, threads), results.peak(threads)
    time = None if entry is None else seconds(entry, name, case)
    if time is None or peak is None:
        return None
    model, rows = split_case(case)
    k, n = linear_shape(model)
    return 2 * (rows or 0) * k * n / time.median / peak


def _against(peer: str, limit: float, label: str) -> Bound:
    def value(results: Results) -> float | None:
        entry = results.entry("dit-xl-256", 2)
        found = None if entry is None else ours_to(entry, peer)
        return None if found is None else found.median

    return Bound(f"DiT-XL/2 256×256: W4A8 / {label}", limit, value)


def _beside(name: str, label: str) -> Bound:
    def value(results: Results) -> float | None:
        entry = results.entry("dit-xl-256", 2)
        found = None if entry is None else to_ours(entry, name)
        return None if found is None else found.median

    return Bound(f"DiT-XL/2 256×256: {label} / W4A8", 1.05, value)


def _best_peer(results: Results) -> float | None:
    entry = results.entry("dit-xl-512", 2)
    if entry is None or entry["waiting"]:
        return None
    return max((found.median for name in peers(entry) if (found := ours_to(entry, name))), default=None)


def _weakest_linear(results: Results) -> float | None:
    """The smallest share of the peak over formats, shapes and numbers of threads."""
    shares: Iterable[float | None] = (
        share_of_peak(results, workload, threads, name, case)
        for workload in ("linear", "linear-rows")
        for threads in (1, 2)
        for name in FORMATS
        for case in WORKLOADS[workload].cases
        if (split_case(case)[1] or 0) >= MANY_ROWS
    )
    return min((share for share in shares if share is not None), default=None)


def memory(results: Results) -> tuple[int, int] | None:
    """Bytes that loading our DiT-XL/2 took beyond the interpreter, and those of its files."""
    for threads in (2, 1):
        entry = results.entry("dit-xl-256", threads)
        if entry is not None and OURS in entry["contestants"]:
            record = entry["contestants"][OURS]
            return record["resident_loaded"], record["bytes"]
    return None


def _memory(results: Results) -> float | None:
    found = memory(results)
    return None if found is None else found[0] / (MEMORY_FACTOR * found[1] + MEMORY_MORE)


def _two_threads(results: Results) -> float | None:
    entry = results.entry("dit-xl-256", 2)
    found = None if entry is None else to_ours(entry, OURS + ONE_THREAD)
    return None if found is None else found.median


BOUNDS: tuple[Bound, ...] = (
    _against("openvino-int4", 0.74, "OpenVINO INT4 g128"),
    _against("openvino-w8a8", 0.90, "OpenVINO W8A8 static"),
    _against("onnxruntime-int8", 0.70, "ONNX Runtime dynamic int8"),
    _against("onnxruntime-nbits", 0.40, "ONNX Runtime MatMulNBits"),
    _against("onnxruntime-fp32", 0.27, "ONNX Runtime fp32"),
    _beside("ours-ternary", "ternary"),
    _beside("ours-vq", "VQ 256×4"),
    _beside("ours-fp4", "FP4"),
    Bound("DiT-XL/2 512×512: W4A8 / the fastest peer", 0.85, _best_peer),
    Bound(
        f"single linears from {MANY_ROWS} rows, quantization included: least share of the int8 peak",
        0.86,
        _weakest_linear,
        at_least=True,
        form="{:.1%}",
    ),
    Bound("DiT-XL/2: memory after loading / (1.25 × files + 150 MB)", 1.0, _memory),
    Bound("DiT-XL/2 256×256: W4A8 on one thread / on two", 1.85, _two_threads, at_least=True, form="{:.2f}"),
)
