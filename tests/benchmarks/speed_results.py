"""Results with figures that can be worked out by hand."""

from __future__ import annotations

from typing import Any

from speed.results import Results

CONDITIONS = {
    "hardware": {
        "cpu": "A Processor",
        "flags": ["avx2"],
        "cores": 2,
        "last_level_cache": "32M",
        "memory_bytes": 16_000_000_000,
    },
    "library": "0123",
    "versions": {"onnxruntime": "1.0"},
    "isa": "avx2",
    "scheduling": "in turn",
    "quick": False,
}


def record(
    label: str, seconds: list[float], baseline: list[float], case: str = "step", ours: bool = False
) -> dict[str, Any]:
    """A contestant of one case."""
    return {
        "label": label,
        "ours": ours,
        "engine": "onnxruntime",
        "version": "1.0",
        "variant": "",
        "bytes": 400_000_000,
        "resident_loaded": 500_000_000,
        "resident_running": 600_000_000,
        "load_seconds": 1.0,
        "cpu": 2.0,
        "cases": {case: {"seconds": seconds, "baseline": baseline}},
    }


def entry(
    contestants: dict[str, dict[str, Any]], not_run: dict[str, dict[str, str]] | None = None
) -> dict[str, Any]:
    """One workload on two threads, peak 1000 GOPS."""
    return {
        "title": "a workload",
        "threads": 2,
        "when": "2026-01-01",
        "baseline": "ours-w4a8",
        "contestants": contestants,
        "waiting": [],
        "not_run": not_run or {},
        "trials": {},
        "peaks": {"kind": "avx512_vnni", "reason": "", "int8": {"1": 5e11, "2": 1e12}, "read": {"2": 5e10}},
        "others": [0.0, 0.0, 0.1],
    }


def results() -> Results:
    """DiT-XL/2 with ours, one peer that is slower and one that did not run; and a linear."""
    ours = [0.1, 0.2, 0.1]
    found = Results(CONDITIONS)
    found.add(
        "dit-xl-256",
        2,
        entry(
            {
                "ours-w4a8": record("ditpress W4A8", ours, ours, ours=True),
                "ours-w4a8@1": record("ditpress W4A8, 1 thread", [0.19, 0.38, 0.21], ours, ours=True),
                "openvino-int4": record("OpenVINO INT4", [0.2, 0.25, 0.125], ours),
            },
            {"openvino-w8a8": {"label": "OpenVINO W8A8", "reason": "no module named nncf"}},
        ),
    )
    # 2 * 512 * 1152 * 1152 = 1.359e9 operations in 1.6 ms: 849 GOPS
    case = "1152x1152@512"
    linear = [0.0016, 0.0015, 0.0017]
    found.add(
        "linear", 2, entry({"ours-w4a8": record("ditpress W4A8", linear, linear, case=case, ours=True)})
    )
    return found
