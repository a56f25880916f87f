"""The page of several runs, and both pages in a real browser."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import MISSING, Page, browser_path, open_page
from validate.test_report import EXAMPLE

from ditpress.errors import InputError
from ditpress.validate.frontier_page import render_frontier
from ditpress.validate.html import Pictures, render_html
from ditpress.validate.report import parse_report
from ditpress.validate.run_plots import ShownRun


def run(name: str, **fidelity: Any) -> ShownRun:
    """A run whose size and FID follow from its name, with pictures."""
    data = copy.deepcopy(EXAMPLE)
    factor = 1 + sum(map(ord, name)) % 7
    data["size"]["compressed_bytes"] = 1_000_000 * factor
    data["fidelity"]["compressed"]["fid"] = 9.0 / factor
    data["fidelity"] |= fidelity
    steps = [{"timestep": 100.0 * i, "sqnr_db": 20.0 + factor + i} for i in range(8)]
    data["details"]["timesteps"] = steps
    images = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(factor))
    return ShownRun(name, parse_report(data), images, images.flip(3))


RUNS = [run("w8a8"), run("w4a8"), run("ternary <b>")]


def test_every_run_is_in_table_plots_and_pictures() -> None:
    page = render_frontier(RUNS)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    table = {name: re.findall(r">([^<>]*)</td>", cells) for name, cells in rows if "<img" not in cells}
    assert set(table) == {"w8a8", "w4a8", "ternary &lt;b&gt;"}
    for shown in RUNS:
        report = shown.report
        cells = table[shown.name.replace("<", "&lt;").replace(">", "&gt;")]
        size, fid = report.size.compressed_bytes / 1e6, report.fidelity.compressed.fid
        assert cells[1] == f"{size:.2f} MB"
        assert float(cells[3]) == pytest.approx(fid, rel=1e-2)
    pictures = {name: cells.count("<img") for name, cells in rows if "<img" in cells}
    assert pictures == {"Original": 10, "w8a8": 10, "w4a8": 10, "ternary &lt;b&gt;": 10}
    assert page.count("<svg") == 3
    for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert plot.count("w4a8") >= 1
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


def test_figures_of_other_settings_do_not_share_a_page() -> None:
    with pytest.raises(InputError, match=r"w8a8 was measured with steps 20, b with 10; .* ditpress validate"):
        render_frontier([RUNS[0], run("b", steps=10)])
    other = {"name": "clip", "sha256": "12" * 32, "num_features": 64}
    with pytest.raises(InputError, match="with extractor abababababab, b with 121212121212"):
        render_frontier([RUNS[0], run("b", extractor=other)])
    with pytest.raises(InputError, match="two runs are called w8a8"):
        render_frontier([RUNS[0], RUNS[0]])
    with pytest.raises(InputError, match="no runs"):
        render_frontier([])


def test_runs_without_pictures_or_details_have_a_page() -> None:
    data = copy.deepcopy(EXAMPLE) | {"details": None}
    page = render_frontier([ShownRun("plain", parse_report(data))])
    assert "<img" not in page
    assert page.count("<svg") == 1


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    path = browser_path()
    if path is None:
        pytest.skip(MISSING)
    with open_page(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    one = RUNS[0]
    pictures = Pictures(one.original, one.compressed, ["the digit seven"] * 12)
    report = render_html(one.report, recipe_yaml="a: 1\n", details=one.report.details, pictures=pictures)
    (folder / "report.html").write_text(report, encoding="utf-8")
    (folder / "frontier.html").write_text(render_frontier(RUNS), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("report", "frontier")}


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", ["report", "frontier"])
def test_the_page_in_chromium(page: Page, files: dict[str, Path], name: str, width: int) -> None:
    page.show(files[name], width)
    assert page.value("innerWidth") == width
    assert page.complaints() == []
    assert {address.split(":")[0] for address in page.addresses()} <= {"file", "data"}
    assert page.value("document.documentElement.scrollWidth") <= width  # no scrolling sideways
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert page.value("document.images.length") > 0
    assert page.value(broken) == 0
    # Text stays readable: none of it smaller than 9 pixels, none of it wider than what it can be scrolled in.
    sizes = (
        "Math.min(...[...document.querySelectorAll('p, th, td, dt, dd, figcaption, h1, h2')]"
        ".filter(e => e.textContent.trim()).map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert page.value(sizes) >= 9
    outside = (
        "[...document.querySelectorAll('h1, h2, p, .tile, figure, .scroll')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert page.value(outside) == 0
    assert page.value("document.querySelectorAll('svg').length") >= 2
    drawn = (
        "[...document.querySelectorAll('svg')].every(e => e.getBoundingClientRect().width > 300 && "
        "e.getBoundingClientRect().height > 60)"
    )
    assert page.value(drawn) is True


def deep_report(folder: Path) -> Path:
    """A report with the error of 28 blocks of five layers at eight timesteps."""
    data = copy.deepcopy(EXAMPLE)
    names = ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
    data["details"]["layers"] = [
        {
            **dict.fromkeys(("original_bytes", "compressed_bytes"), 8000.0),
            **{"name": f"transformer_blocks.{block}.{name}", "format": "int4"},
            **{"weight_error": 0.09, "output_sqnr_db": 20.0},
            "timesteps": [{"timestep": 999.0 - 120 * i, "sqnr_db": 40.0 - block - 1.5 * i} for i in range(8)],
        }
        for block in range(28)
        for name in names
    ]
    report = parse_report(data)
    path = folder / "deep.html"
    path.write_text(render_html(report, recipe_yaml="a: 1\n", details=report.details), encoding="utf-8")
    return path


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1) of what getComputedStyle says of a colour."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    channels = [number if colour.startswith("color(") else number / 255 for number in numbers]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_the_error_of_every_layer_and_timestep_is_readable(
    page: Page, tmp_path: Path, width: int, scheme: str
) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.show(deep_report(tmp_path), width)
    assert page.complaints() == []
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelectorAll('.heat td').length") == 28 * 5 * 8
    # All columns are in view without scrolling, one line each.
    assert page.value("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('.tall'))") is True
    cells = "[...document.querySelectorAll('.heat td')]"
    assert page.value(f"Math.min(...{cells}.map(e => e.getBoundingClientRect().width))") >= 24
    assert page.value(f"Math.max(...{cells}.map(e => e.getBoundingClientRect().height))") < 45
    style = "(e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor])"
    shades = set()
    for index in (0, 28 * 5 * 8 - 1):  # the best and the worst
        ink, paper = map(luminance, page.value(f"{style}({cells}[{index}])"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5
        shades.add(round(paper, 3))
    assert len(shades) == 2
    page.call("Emulation.setEmulatedMedia", features=[])


def test_the_browser_would_report_an_error(page: Page, tmp_path: Path) -> None:
    """The checks above can fail: a page with a broken script and an outside picture is noticed."""
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/none.png"><script>throw new Error("broken")</script>')
    page.show(bad, 400)
    assert any("broken" in complaint for complaint in page.complaints())
    assert any(address.startswith("http:") for address in page.addresses())
