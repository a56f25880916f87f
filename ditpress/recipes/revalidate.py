"""``ditpress validate OUT``: measure a finished run again, with other settings or against another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditpress.recipes.judge import Judge, Judged
from ditpress.recipes.result import Result
from ditpress.recipes.run import RunFolder
from ditpress.validate.grid import image_grid, png_bytes
from ditpress.validate.html import Pictures, render_html
from ditpress.validate.report import Fidelity, LayerDetail, Report, load_report
from ditpress.validate.sensitivity import timestep_details


def revalidate(out: str | Path, settings: dict[str, Any]) -> Result | None:
    """Draw and measure again with ``settings`` of :class:`ValidationSpec` changed; rewrites the report.

    The compressed model and its ONNX file are taken as they are.

    Returns:
        the result; None in all processes of ``torchrun`` but the first.

    Raises:
        InputError: ``out`` is no finished run, its original model is gone, or a setting is wrong.
    """
    judge = Judge(out, settings)
    before = load_report(judge.path / "report.json")
    judged = judge.measure()
    if judged is None:
        return None
    recipe = judge.recipe.model_copy(update={"validation": judge.spec})
    report = updated(before, judged)
    pictures = Pictures(judged.images["original"], judged.images["compressed"], judged.captions)
    page = render_html(report, recipe_yaml=recipe.to_yaml(), details=report.details, pictures=pictures)
    run = RunFolder(judge.path, judge.marker)
    grid = image_grid(pictures.original, pictures.compressed, captions=pictures.captions)
    run.write("recipe.yaml", recipe.to_yaml().encode())
    run.write("samples.png", png_bytes(grid))
    run.write("report.html", page.encode())
    run.write("report.json", report.to_json().encode())
    return Result(judge.path)


def measure_against(out: str | Path, against: str, settings: dict[str, Any]) -> Fidelity | None:
    """The figures of a finished run with MODEL ``against`` in the place of its original; writes nothing.

    Raises:
        InputError: see :func:`revalidate`; also where the two draw images of different sizes.
    """
    judged = Judge(out, settings, against=against).measure()
    return None if judged is None else judged.fidelity


def updated(report: Report, judged: Judged) -> Report:
    """The report with what was measured now; sizes, stages and speed stay."""
    details = report.details
    if details is not None:
        layers = [_measured(layer, judged) for layer in details.layers]
        steps = timestep_details(judged.sqnr.by_timestep.items())
        details = details.model_copy(update={"timesteps": steps, "layers": layers})
    return report.model_copy(update={"fidelity": judged.fidelity, "details": details})


def _measured(layer: LayerDetail, judged: Judged) -> LayerDetail:
    """The layer with its error as it is now; unchanged where stages/ is gone."""
    if layer.name not in judged.layers:
        return layer
    total, by_timestep = judged.layers[layer.name]
    return layer.model_copy(
        update={"output_sqnr_db": total, "timesteps": timestep_details(by_timestep)},
    )
