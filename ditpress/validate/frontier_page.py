"""``ditpress report``: several runs on one page, size against FID against time, pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ditpress.errors import InputError
from ditpress.validate import figures, run_plots
from ditpress.validate.html import data_uri, page_environment
from ditpress.validate.report import Fidelity
from ditpress.validate.run_plots import ShownRun

COUNT = 10


def render_frontier(runs: Sequence[ShownRun]) -> str:
    """The page as a string: no script, no reference to anything outside, dark and light.

    Raises:
        InputError: no runs, two of one name, or figures that cannot be compared; names the setting.
    """
    if not runs:
        raise InputError("report: no runs; give one or more OUT folders")
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"report: two runs are called {twice}; give folders of different names")
    require_comparable(runs)
    plots = {
        "frontier": run_plots.frontier_plot(runs),
        "timesteps": run_plots.timesteps_plot(runs),
        "layers": run_plots.layers_plot(runs),
    }
    return (
        page_environment()
        .get_template("frontier.html.j2")
        .render(
            runs=runs,
            rows=[_row(run) for run in runs],
            plots={name: Markup(svg) for name, svg in plots.items() if svg is not None},
            pictures=_pictures(runs),
            conditions=figures.conditions(runs[0].report),
            models=list(dict.fromkeys(run.report.model for run in runs)),
        )
    )


def require_comparable(runs: Sequence[ShownRun]) -> None:
    """Refuse figures of different extractors or settings on one page.

    Raises:
        InputError: names the two runs, the setting and both values.
    """
    measured = [run for run in runs if run.report.fidelity.samples]
    for run in measured[1:]:
        first, other = (_settings(one.report.fidelity) for one in (measured[0], run))
        for name, value in first.items():
            if other[name] != value:
                raise InputError(
                    f"report: {measured[0].name} was measured with {name} {value}, {run.name} with "
                    f"{other[name]}; figures cannot be compared, measure one again with ditpress validate"
                )


def _settings(fidelity: Fidelity) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(fidelity, name) for name in ("samples", "steps", "guidance")}
    for name in ("extractor", "inception", "lpips_network", "reference"):
        identity = getattr(fidelity, name)
        found[name] = None if identity is None else identity.sha256[:12]
    return found


def _row(run: ShownRun) -> dict[str, str]:
    report = run.report
    size, after, pairs = report.size, report.fidelity.compressed, report.fidelity.paired
    return {
        "name": run.name,
        "recipe": report.recipe,
        "size": figures.human_bytes(size.compressed_bytes),
        "bits": figures.fixed(2)(size.effective_bits),
        "fid": figures.number(after.fid if after.fid is not None else after.fid_to_original),
        "clip": figures.fixed(2)(after.clip),
        "psnr": figures.fixed(2)(pairs.psnr),
        "sqnr": figures.fixed(2)(pairs.output_sqnr_db),
        "ms": figures.ms(report.speed.compressed_ms),
    }


def _pictures(runs: Sequence[ShownRun]) -> dict[str, Any] | None:
    """Rows of the same seeds: the original of the first run that has one, then every run."""
    shown = [run for run in runs if run.original is not None and run.compressed is not None]
    seeds = {(run.report.model, run.report.fidelity.first_seed) for run in shown}
    if not shown or len(seeds) > 1:
        return None
    rows = [("Original", shown[0].original), *((run.name, run.compressed) for run in shown)]
    return {
        "rows": [
            (label, [data_uri(image) for image in images[:COUNT]])
            for label, images in rows
            if images is not None
        ],
        "pixelated": max(shown[0].original.shape[-2:]) < 96 if shown[0].original is not None else False,
    }
