"""Paired timing, on a clock of our own: no test here depends on how fast the machine is."""

from __future__ import annotations

import pytest

from ditpress.errors import InputError
from ditpress.validate.speed import bench, hardware, measure_paired


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, costs: list[float]):
        remaining = iter(costs)

        def run() -> None:
            self.order.append(name)
            self.now += next(remaining)

        return run


def test_medians_of_alternating_runs():
    clock = Clock()
    # warm-up, then three rounds; the machine is four times slower in the second one
    functions = {
        "original": clock.task("original", [9.0, 2.0, 8.0, 2.0]),
        "compressed": clock.task("compressed", [9.0, 1.0, 4.0, 0.5]),
    }
    timings = measure_paired(functions, rounds=3, warmup=1, clock=clock)
    assert timings.seconds == {"original": (2.0, 8.0, 2.0), "compressed": (1.0, 4.0, 0.5)}
    assert timings.median_ms("original") == 2000.0
    assert timings.median_ms("compressed") == 1000.0
    first_of_round = clock.order[::2]
    assert first_of_round == ["original", "compressed", "original", "compressed"]


def test_report_fields():
    runs = {"original": 0, "compressed": 0}

    def count(name):
        runs[name] += 1

    functions = {name: lambda name=name: count(name) for name in runs}
    report = bench(functions, threads=2, rounds=4, warmup=1)
    assert set(report) == {"hardware", "threads", "original_ms", "compressed_ms", "speedup"}
    assert report["threads"] == 2
    assert report["speedup"] == report["original_ms"] / report["compressed_ms"]
    assert runs == {"original": 5, "compressed": 5}


@pytest.mark.parametrize(("once", "rounds"), [(0.001, 500), (0.125, 16), (4.0, 7)])
def test_slow_steps_are_repeated_less(once: float, rounds: int):
    clock = Clock()
    costs = [once / 2] * 1000
    functions = {name: clock.task(name, costs) for name in ("original", "compressed")}
    bench(functions, threads=1, warmup=3, clock=clock)
    assert len(clock.order) == 2 * (3 + 1 + rounds)


def test_bad_input():
    with pytest.raises(InputError, match="expected at least one"):
        measure_paired({})
    with pytest.raises(InputError, match="0 rounds"):
        measure_paired({"a": int}, rounds=0)
    with pytest.raises(InputError, match="'original' and 'compressed'"):
        bench({"original": int}, threads=1)


def test_hardware_of_x86(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: A Processor 9000\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\n"
        "processor\t: 1\nmodel name\t: B\nflags\t\t: fpu\n"
    )
    text = hardware(cpuinfo)
    assert text.startswith("A Processor 9000, AVX-512 VNNI AVX-512 AVX2, ")
    assert text.split(", ")[2].endswith("cores")


def test_hardware_of_arm_and_of_no_linux(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert "NEON dot product" in hardware(cpuinfo)
    assert "cores" in hardware(tmp_path / "missing")
