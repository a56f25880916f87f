"""The plots of report.html: SVG from matplotlib that takes its colours and fonts from the page's CSS."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ditpress.kernels.formats import FORMATS
from ditpress.validate.sensitivity import LayerDetail, TimestepDetail

# Colours that occur nowhere else, swapped for CSS variables in the SVG: one plot serves dark and light.
INK, MUTED, LINE, GHOST, HIGH = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", GHOST: "ghost", HIGH: "high"}
_VARIABLES |= {colour: f"series-{index + 1}" for index, colour in enumerate(SERIES)}

STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
}
WIDTH = 9.0  # inches; the page scales the plot to its own width


def size_plot(layers: Sequence[LayerDetail]) -> str:
    """Bytes per layer in model order: original as a pale bar, compressed in the colour of its format."""
    largest = max(layer.original_bytes for layer in layers)
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)) if largest >= s)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.add_subplot()
        positions = range(len(layers))
        axes.bar(positions, [layer.original_bytes / scale for layer in layers], 0.8, color=GHOST)
        colours = _colours(layers)
        axes.bar(
            positions,
            [layer.compressed_bytes / scale for layer in layers],
            0.8,
            color=[colours[layer.format] for layer in layers],
        )
        axes.set_ylabel(unit)
        _block_axis(axes, layers)
        _legend(axes, {"original": GHOST, **colours})
        return as_svg(figure, "Size of every layer, original and compressed", "size")


def layer_error_plot(layers: Sequence[LayerDetail]) -> str:
    """Relative weight error (upper) and output SQNR (lower) of the quantized layers, in model order."""
    layers = [layer for layer in layers if layer.weight_error is not None]
    measured = any(layer.output_sqnr_db is not None for layer in layers)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2 if measured else 2.4), layout="constrained")
        panels = figure.subplots(2 if measured else 1, 1, sharex=True, squeeze=False)[:, 0]
        colours = _colours(layers)
        positions = range(len(layers))
        bars = [colours[layer.format] for layer in layers]
        panels[0].bar(positions, [100 * (layer.weight_error or 0) for layer in layers], 0.8, color=bars)
        panels[0].set_ylabel("weight error, %")
        if measured:
            known = [
                (i, layer.output_sqnr_db)
                for i, layer in enumerate(layers)
                if layer.output_sqnr_db is not None
            ]
            panels[1].scatter(
                [i for i, _ in known],
                [db for _, db in known],
                s=22,
                color=[bars[i] for i, _ in known],
                linewidth=0,
            )
            panels[1].set_ylabel("output SQNR, dB")
        _block_axis(panels[-1], layers)
        panels[0].tick_params(axis="x", length=0)
        _legend(panels[0], colours)
        return as_svg(figure, "Error of every quantized layer", "layer-error")


def timestep_plot(timesteps: Sequence[TimestepDetail]) -> str:
    """Output SQNR over the timesteps, in the order of sampling: noise on the left, image on the right."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(
            [point.timestep for point in timesteps],
            [point.sqnr_db for point in timesteps],
            color=SERIES[0],
            linewidth=1.6,
            marker="o",
            markersize=3.5,
        )
        axes.invert_xaxis()
        axes.set_xlabel("timestep (sampling runs from left to right)")
        axes.set_ylabel("output SQNR, dB")
        return as_svg(figure, "Error of the output at every timestep", "timestep-error")


def _colours(layers: Sequence[LayerDetail]) -> dict[str, str]:
    """A colour per format: low-bit formats by appearance (the last shared), what stays high in slate."""
    names = list(dict.fromkeys(layer.format for layer in layers))
    low = [name for name in names if name in FORMATS]
    colours = {name: SERIES[min(index, len(SERIES) - 1)] for index, name in enumerate(low)}
    return {name: colours.get(name, HIGH) for name in names}


def _legend(axes: Any, colours: dict[str, str]) -> None:
    axes.legend(
        handles=[Patch(color=colour, label=name) for name, colour in colours.items()],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(colours),
        borderaxespad=0.2,
        handlelength=1,
        handleheight=1,
    )


def _block_axis(axes: Any, layers: Sequence[LayerDetail]) -> None:
    """One tick in the middle of every numbered block ("transformer_blocks.3"), lines between blocks."""
    spans: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        match = re.match(r"(.*?\.\d+)(\.|$)", layer.name)
        if match:
            spans.setdefault(match[1], []).append(position)
    step = max(1, len(spans) // 30 + (len(spans) % 30 > 0) - 1) if spans else 1
    ticks = [((span[0] + span[-1]) / 2, name.rsplit(".", 1)[1]) for name, span in spans.items()]
    axes.set_xticks([tick for tick, _ in ticks[::step]], [label for _, label in ticks[::step]])
    axes.tick_params(axis="x", length=0)
    for span in spans.values():
        axes.axvline(span[0] - 0.5, color=LINE, linewidth=0.6, zorder=0)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.set_xlabel("block" if spans else "layer")


def as_svg(figure: Figure, label: str, salt: str) -> str:
    """Inline SVG without prologue, metadata, colours or fonts of its own."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="[A-Za-z0-9.]+_\d+"', "", svg
    )  # unique within one plot only, and nothing refers to them
    svg = re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg role="img" aria-label="{label}" \1>', svg, count=1
    )
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
