"""The command."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from marks import write_between
from speed import hardware, tables
from speed.results import Entry, Results
from speed.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = "benchmarks/results"  # what --write fills
QUICK_ROUNDS, ROUNDS = 2, 7
_DISTRIBUTIONS = ("onnxruntime", "openvino", "nncf", "torch")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/speed", description="ditpress against its peers: speed of one denoising step."
    )
    parser.add_argument("--quick", action="store_true", help="few blocks, few rounds: does it run?")
    parser.add_argument(
        "--only",
        action="append",
        choices=WORKLOADS,
        metavar="WORKLOAD",
        default=[],
        help=f"one of {', '.join(WORKLOADS)}; may be repeated. The others keep their figures",
    )
    parser.add_argument("--rounds", type=int, help=f"of each contestant (default {ROUNDS})")
    parser.add_argument("--threads", default="2,1", help="numbers of threads (default 2,1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "bench-out" / "speed",
        help="prepared files and results (default bench-out/speed)",
    )
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS} and the README as well")
    parser.add_argument("--report", action="store_true", help="measure nothing: tables and plot again")
    args = parser.parse_args(arguments)
    try:
        threads = [int(count) for count in args.threads.split(",")]
    except ValueError:
        parser.error(f"--threads {args.threads}: expected numbers such as 2,1")
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    cores = len(hardware.one_per_core())
    if not threads or min(threads) < 1 or rounds < 1:
        parser.error("--threads and --rounds: expected at least 1")
    if max(threads) > cores:
        parser.error(f"--threads {args.threads}: this process may use {cores} cores")
    if args.quick and args.write:
        parser.error("--quick does not measure what the README shows: run without it to --write")
    names = args.only or list(WORKLOADS)

    def work(scheduling: str) -> int:
        return _run(args, [] if args.report else names, threads, rounds, scheduling)

    raise SystemExit(hardware.in_own_group(work))


def _run(args: argparse.Namespace, names: list[str], threads: list[int], rounds: int, scheduling: str) -> int:
    from ditpress.files import sha256_file
    from ditpress.kernels.cpu import isa, library_path
    from speed.artifacts import Artifacts, version_of
    from speed.contestants import Contestant
    from speed.measure import Measurement
    from speed.peaks import Peaks
    from speed.processes import Failed

    library = library_path()
    conditions = {
        "hardware": hardware.describe(),
        "library": sha256_file(library)[:12] if library else "not built",
        "versions": {name: version_of(name) for name in _DISTRIBUTIONS},
        "isa": isa(),
        "scheduling": scheduling,
        "quick": args.quick,
    }
    print(
        f"{conditions['hardware']['cpu']}: ditpress computes on {conditions['isa']}; {scheduling}", flush=True
    )
    path = args.out / ("quick.json" if args.quick else "results.json")
    results = Results.resume(path, conditions)
    peaks = Peaks(args.out, [1, *threads])
    if peaks.reason:
        print(peaks.reason)
    failures = 0
    try:
        for name in names:
            workload, picked = WORKLOADS[name], dict[str, Contestant]()
            artifacts = Artifacts(args.out, workload, args.quick)
            for count in sorted(threads, reverse=True):
                print(f"{name}, {count} threads", flush=True)
                earlier = results.stopped(name, count)
                if earlier is not None:
                    print(f"  going on after {', '.join(earlier['contestants'])}", flush=True)
                one = Measurement(
                    workload, count, rounds, artifacts, peaks, str(library or ""), picked, earlier
                )
                try:
                    one.run(partial(_keep, results, path, name, count))
                except Failed as error:
                    print(f"{name} not measured: {error}", flush=True)
                    failures += 1
    finally:
        peaks.close()
    _report(results, args.out, path.stem)
    if args.write:
        _report(results, ROOT / RESULTS, "speed")
        results.save(ROOT / RESULTS / "speed.json")
        lines = tables.readme_section(results, f"{RESULTS}/speed.svg")
        write_between(ROOT / "README.md", "speed", lines)
    return int(failures > 0)


def _keep(results: Results, path: Path, workload: str, threads: int, entry: Entry) -> None:
    """What a stopped measurement leaves: the next one goes on from there."""
    results.add(workload, threads, entry)
    results.save(path)


def _report(results: Results, folder: Path, name: str) -> None:
    """Write the tables and the plot into ``folder``, and say what the requirements got."""
    from speed.plot import draw

    folder.mkdir(parents=True, exist_ok=True)
    report = folder / f"{name}.md"
    report.write_text("\n".join(tables.full_report(results)) + "\n", encoding="utf-8")
    draw(results, folder / f"{name}.svg")
    print("\n".join(tables.bounds_table(results)))
    print(f"written: {report}")
