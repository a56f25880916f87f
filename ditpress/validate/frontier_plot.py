"""frontier.png: output SQNR over size, of all allocations on the frontier and of those measured."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e5e7eb"}


def frontier_png(frontier: Mapping[str, Any]) -> bytes:
    """The plot of what the stage ``mixed`` found, as PNG.

    Args:
        frontier: frontier.json, see :func:`ditpress.compress.allocate.frontier.facts`.
    """
    predicted, measured, chosen = frontier["predicted"], frontier["measured"], frontier["chosen"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 4.0), layout="constrained", dpi=120)
        axes = figure.add_subplot()
        axes.plot(
            [point["bits"] for point in predicted],
            [point["predicted_db"] for point in predicted],
            color="#94a3b8",
            linewidth=1.4,
            label="sum of single layers",
        )
        axes.plot(
            [point["bits"] for point in measured],
            [point["measured_db"] for point in measured],
            color="#2563eb",
            marker="o",
            markersize=4,
            linewidth=1.4,
            label="measured end to end",
        )
        axes.plot(
            [chosen["bits"]], [chosen["measured_db"]], "o", color="#dc2626", markersize=7, label="chosen"
        )
        axes.axvline(frontier["budget_bits"], color="#dc2626", linewidth=0.8, linestyle=":", label="budget")
        axes.set_xlabel("stored bits a parameter")
        axes.set_ylabel("output SQNR, dB")
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
