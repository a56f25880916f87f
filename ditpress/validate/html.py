"""report.html: one file with everything in it, for people."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from torch import Tensor

from ditpress.validate import figures, plots
from ditpress.validate.error_table import error_table
from ditpress.validate.grid import difference, png_bytes, to_pil
from ditpress.validate.report import Report
from ditpress.validate.sensitivity import Details

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Pictures:
    """Same-seed samples for the page: float [n, C, H, W] in [0, 1], and a caption for each."""

    original: Tensor
    compressed: Tensor
    captions: Sequence[str] | None = None
    count: int = 10


def render_html(
    report: Report, *, recipe_yaml: str, details: Details | None = None, pictures: Pictures | None = None
) -> str:
    """The page as a string: no script, no reference to anything outside, dark and light.

    Args:
        report: the content of report.json.
        recipe_yaml: the recipe with every default written out.
        details: sizes and errors for the plots; None: no plots.
        pictures: samples for the image grid; None: no grid.
    """
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            tiles=figures.tiles(report),
            rows=figures.rows(report),
            conditions=figures.conditions(report),
            recipe_yaml=recipe_yaml,
            details=details,
            plots=_plots(details),
            errors=None if details is None else error_table(details.layers),
            grid=None if pictures is None else _grid(pictures),
            report_json=json.dumps(json.loads(report.to_json()), indent=2, ensure_ascii=False),
        )
    )


def page_environment() -> Environment:
    """The templates of this folder: everything escaped, nothing undefined."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "human_bytes": figures.human_bytes,
        "seconds": figures.seconds,
        "number": figures.number,
        "breakable": _breakable,
    }
    return environment


def _breakable(name: str) -> Markup:
    """A module's name that may go on in the next line after a dot or an underscore."""
    return Markup(re.sub(r"(?<=[._])", "<wbr>", str(escape(name))))


def _plots(details: Details | None) -> dict[str, Markup]:
    """The SVG of every plot that there are data for."""
    result: dict[str, Markup] = {}
    if details is None:
        return result
    if details.layers:
        result["size"] = Markup(plots.size_plot(details.layers))
    if any(layer.weight_error is not None for layer in details.layers):
        result["layers"] = Markup(plots.layer_error_plot(details.layers))
    if details.timesteps:
        result["timesteps"] = Markup(plots.timestep_plot(details.timesteps))
    return result


def _grid(pictures: Pictures) -> dict[str, object]:
    original, compressed = pictures.original[: pictures.count], pictures.compressed[: pictures.count]
    apart, factor = difference(original, compressed)
    labelled = [("Original", original), ("Compressed", compressed), (f"Difference × {factor}", apart)]
    return {
        "factor": factor,
        "captions": None if pictures.captions is None else list(pictures.captions[: pictures.count]),
        "rows": [(label, [data_uri(image) for image in images]) for label, images in labelled],
        "pixelated": max(original.shape[-2:]) < 96,
    }


def data_uri(image: Tensor) -> str:
    """An image [C, H, W] as it stands in a page."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(to_pil(image))).decode()
