"""The results in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from speed.bounds import BOUNDS, memory, share_of_peak
from speed.results import Entry, Results, ours_to, seconds
from speed.rounds import Spread
from speed.workloads import WORKLOADS

README_WORKLOADS = ("dit-xl-256", "dit-xl-512")
THREADS_SHOWN = 2


def milliseconds(time: Spread) -> str:
    """Median and quartiles: "12.3 (12.1-12.6)"."""
    digits = 0 if time.median >= 0.1 else 1 if time.median >= 0.01 else 2
    low, median, high = (f"{1e3 * value:.{digits}f}" for value in (time.low, time.median, time.high))
    return f"{median} ({low}–{high})"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table, the first column to the left, the others to the right."""
    names = list(header)
    lines = [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def models_table(entry: Entry, case: str = "step") -> list[str]:
    """Whole models or blocks: time, our time over theirs, size."""
    order = sorted(
        (time.median, name)
        for name in entry["contestants"]
        if (time := seconds(entry, name, case)) is not None
    )
    rows = []
    for _, name in order:
        record, time, ours = (
            entry["contestants"][name],
            seconds(entry, name, case),
            ours_to(entry, name, case),
        )
        if time is None or ours is None:
            continue
        mine = name == entry["baseline"]
        size = "" if record["bytes"] is None else f"{record['bytes'] / 1e6:,.0f} MB"
        label = record["label"] + (f" ({record['variant']})" if record["variant"] else "")
        rows.append(
            (
                f"**{label}**" if record["ours"] else label,
                milliseconds(time),
                "1" if mine else f"{ours.median:.2f} ({ours.low:.2f}–{ours.high:.2f})",
                size,
            )
        )
    base = entry["contestants"][entry["baseline"]]["label"]
    lines = table(("", "ms (quartiles)", f"{base} / this", "files"), rows)
    return lines + not_run(entry)


def not_run(entry: Entry) -> list[str]:
    """A line for each contestant that could not be run, and one for those whose turn has not come."""
    reasons = [f"Not run: {one['label']}: {one['reason'].rstrip('.')}." for one in entry["not_run"].values()]
    if entry["waiting"]:
        reasons.append(f"Not measured yet: {', '.join(entry['waiting'])}.")
    return [line for text in reasons for line in ("", text)]


def linears_table(results: Results, workload: str, threads: int) -> list[str]:
    """Each format and peer on each shape: time of one linear, and its share of the int8 peak."""
    entry = results.entry(workload, threads)
    if entry is None:
        return []
    cases = WORKLOADS[workload].cases
    rows = []
    for name, record in entry["contestants"].items():
        cells = []
        for case in cases:
            time = seconds(entry, name, case)
            share = share_of_peak(results, workload, threads, name, case)
            part = "" if share is None else f" ({share:.0%})"
            cells.append("" if time is None else f"{1e3 * time.median:.2f}{part}")
        rows.append((f"**{record['label']}**" if record["ours"] else record["label"], *cells))
    header = (case.replace("x", "→").replace("@", ", ") for case in cases)
    return table(("ms (share of the int8 peak)", *header), rows) + not_run(entry)


def bounds_table(results: Results) -> list[str]:
    """Each requirement, what was measured, and whether it holds."""
    rows = []
    for bound in BOUNDS:
        value, holds = bound.value(results), bound.holds(results)
        limit = ("≥ " if bound.at_least else "≤ ") + bound.form.format(bound.limit)
        measured = "not measured" if value is None else bound.form.format(value)
        rows.append((bound.text, limit, measured, {True: "yes", False: "**no**", None: ""}[holds]))
    return table(("", "required", "measured", "holds"), rows)


def conditions(results: Results) -> list[str]:
    """How it was measured, in words."""
    hardware, versions = results.conditions["hardware"], results.conditions["versions"]
    lines = [
        f"{hardware['cpu']} ({' '.join(hardware['flags'])}), {hardware['cores']} cores, last-level cache "
        f"{hardware['last_level_cache']}, {hardware['memory_bytes'] / 1e9:.0f} GB. "
        f"ditpress computes on `{results.conditions['isa']}`. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        "Every contestant is a process with its model loaded; in each round they run in turn while the "
        f"others sleep, {results.conditions['scheduling']}. Times are medians over the rounds, a ratio is "
        "the median of the ratios inside each round. All start from one fp32 ONNX file of one model with "
        "random weights; of OpenVINO's settings the faster one is shown.",
    ]
    for threads in (1, 2):
        peak, read = results.peak(threads), results.bandwidth(threads)
        if peak or read:
            lines += [
                "",
                f"Peaks on {threads} thread{'s' * (threads > 1)}: "
                + (f"int8 dot products {peak / 1e9:,.0f} GOPS" if peak else "int8 not measured")
                + (f", reading memory {read / 1e9:.1f} GB/s." if read else "."),
            ]
    reasons = {entry["peaks"]["reason"] for _, _, entry in results.entries() if entry["peaks"]["reason"]}
    return lines + [line for text in sorted(reasons) for line in ("", f"Peaks: {text}.")]


def full_report(results: Results) -> list[str]:
    """Everything: the file beside results.json."""
    lines = ["# Speed", "", *conditions(results), "", "## Requirements", "", *bounds_table(results)]
    if found := memory(results):
        lines += [
            "",
            f"DiT-XL/2 W4A8 takes {found[0] / 1e6:.0f} MB after loading, beyond the interpreter with ONNX "
            f"Runtime imported; its files are {found[1] / 1e6:.0f} MB.",
        ]
    for workload, threads, entry in results.entries():
        lines += ["", f"## {entry['title']}, {threads} thread{'s' * (threads > 1)}", ""]
        if WORKLOADS[workload].is_linear:
            lines += linears_table(results, workload, threads)
        else:
            lines += models_table(entry)
        others = entry["others"] or [0.0]
        lines += [
            "",
            f"{entry['when']}; cores busy for other programs meanwhile: {statistics.median(others):.2f} in "
            f"the median, {max(others):.2f} at most.",
        ]
    return lines


def readme_section(results: Results, plot: str) -> list[str]:
    """What the README shows: the plot, DiT-XL/2 and the requirements."""
    lines = [f"![Time of one denoising step of DiT-XL/2, ditpress and its peers]({plot})"]
    for workload in README_WORKLOADS:
        entry = results.entry(workload, THREADS_SHOWN)
        if entry is not None:
            lines += ["", f"{entry['title']}, {THREADS_SHOWN} threads:", "", *models_table(entry)]
    return [*lines, "", *bounds_table(results), "", *conditions(results)]
