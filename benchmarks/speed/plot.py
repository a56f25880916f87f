"""The plot of the README: one denoising step, ours and the peers."""

from __future__ import annotations

from pathlib import Path

from speed.results import Results, seconds
from speed.tables import README_WORKLOADS, THREADS_SHOWN

OURS, PEERS, TEXT, GRID = "#1a7f5a", "#b9bec6", "#24292f", "#d8dee4"
WIDTH, ROW_HEIGHT = 8.6, 0.24  # inches; GitHub shows about 850 pixels


def draw(results: Results, path: Path) -> bool:
    """Write an SVG with one panel for each of the README's workloads; False: none was measured."""
    panels = []
    for workload in README_WORKLOADS:
        entry = results.entry(workload, THREADS_SHOWN)
        if entry is None:
            continue
        bars = sorted(
            (time.median * 1e3, record["label"], record["ours"])
            for name, record in entry["contestants"].items()
            if "@" not in name and (time := seconds(entry, name)) is not None
        )
        panels.append((entry["title"], bars))
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = {"font.size": 8.5, "svg.hashsalt": "speed", "text.color": TEXT, "font.family": "DejaVu Sans"}
    with pyplot.rc_context(settings):
        heights = [len(bars) + 2 for _, bars in panels]
        figure, axes = pyplot.subplots(
            len(panels),
            1,
            figsize=(WIDTH, ROW_HEIGHT * sum(heights)),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for axis, (title, bars) in zip(axes[:, 0], panels, strict=True):
            names = [label for _, label, _ in bars]
            colours = [OURS if ours else PEERS for _, _, ours in bars]
            axis.barh(range(len(bars)), [length for length, _, _ in bars], color=colours, height=0.72)
            for row, (length, _, ours) in enumerate(bars):
                weight = "bold" if ours else "normal"
                axis.text(length, row, f"  {length:,.0f}", va="center", fontweight=weight)
            axis.set_yticks(range(len(bars)), names, color=TEXT)
            axis.invert_yaxis()
            axis.set_title(f"{title}, {THREADS_SHOWN} threads: ms per step", loc="left", fontsize=9)
            axis.margins(x=0.08)
            axis.tick_params(length=0, colors=TEXT)
            axis.xaxis.grid(True, color=GRID, linewidth=0.6)
            axis.set_axisbelow(True)
            for side in axis.spines.values():
                side.set_visible(False)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)
    return True
