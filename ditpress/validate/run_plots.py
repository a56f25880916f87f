"""Plots of several runs: SVG that takes its colours from the page, as in :mod:`ditpress.validate.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from ditpress.validate.plots import MUTED, SERIES, STYLE, WIDTH, as_svg
from ditpress.validate.report import Report

SCALE, UNIT = 1e6, "MB"


@dataclass(frozen=True)
class ShownRun:
    """One run: its name on the page, report.json, and first same-seed samples where they are still there."""

    name: str
    report: Report
    original: Tensor | None = None
    compressed: Tensor | None = None


def frontier_plot(runs: Sequence[ShownRun]) -> str | None:
    """FID over size and milliseconds over size, a point per run; None where neither was measured.

    FID to the reference images, or to the original's samples where no run has those.
    """
    fid, label = [run.report.fidelity.compressed.fid for run in runs], "FID"
    if all(value is None for value in fid):
        fid = [run.report.fidelity.compressed.fid_to_original for run in runs]
        label = "FID to the original"
    ms = [run.report.speed.compressed_ms for run in runs]
    panels = [(name, values) for name, values in ((label, fid), ("ms per step", ms)) if any(values)]
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        for axes, (name, values) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for index, (run, value) in enumerate(zip(runs, values, strict=True)):
                if value is None:
                    continue
                size = run.report.size.compressed_bytes / SCALE
                axes.scatter([size], [value], s=46, color=_colour(index), linewidth=0)
                axes.annotate(
                    run.name, (size, value), (5, 5), textcoords="offset points", color=MUTED, fontsize=8
                )
            axes.margins(0.15)
            axes.set_xlabel(f"size of the compressed model, {UNIT}")
            axes.set_ylabel(name)
        return as_svg(figure, "Every run: FID over size, and time over size", "frontier")


def timesteps_plot(runs: Sequence[ShownRun]) -> str | None:
    """Output SQNR over the timesteps, a line per run."""
    lines = [
        (index, run.name, [(point.timestep, point.sqnr_db) for point in run.report.details.timesteps])
        for index, run in enumerate(runs)
        if run.report.details is not None and run.report.details.timesteps
    ]
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for index, name, points in lines:
            steps, decibels = zip(*sorted(points), strict=True)
            axes.plot(
                steps, decibels, color=_colour(index), linewidth=1.6, marker="o", markersize=3, label=name
            )
        axes.invert_xaxis()
        axes.set_xlabel("timestep (sampling runs from left to right)")
        axes.set_ylabel("output SQNR, dB")
        _legend(axes, len(lines))
        return as_svg(figure, "Error of the output at every timestep, of every run", "run-timesteps")


def layers_plot(runs: Sequence[ShownRun]) -> str | None:
    """Output SQNR of the low-bit layers in model order, dots of one colour per run."""
    names: dict[str, int] = {}
    dots = []
    for index, run in enumerate(runs):
        layers = [] if run.report.details is None else run.report.details.layers
        known = [(layer.name, layer.output_sqnr_db) for layer in layers if layer.output_sqnr_db is not None]
        for name, _ in known:
            names.setdefault(name, len(names))
        if known:
            dots.append((index, run.name, known))
    if not dots:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for index, name, known in dots:
            axes.scatter(
                [names[layer] for layer, _ in known],
                [db for _, db in known],
                s=18,
                color=_colour(index),
                linewidth=0,
                label=name,
            )
        axes.set_xlabel("low-bit layer, in model order")
        axes.set_ylabel("output SQNR, dB")
        _legend(axes, len(dots))
        return as_svg(figure, "Error of every low-bit layer, of every run", "run-layers")


def _colour(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _legend(axes: Any, count: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(count, 6), borderaxespad=0.2, handlelength=1
    )
