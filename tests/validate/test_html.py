import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import example

from ditpress.errors import InputError
from ditpress.validate.grid import difference, image_grid, png_bytes, to_pil
from ditpress.validate.html import Pictures, render_html
from ditpress.validate.report import Fidelity, Report, parse_report
from ditpress.validate.sensitivity import Details, LayerDetail, TimestepDetail

VOID = {"meta", "wbr", "img", "br", "link", "input", "hr"}


class Balanced(HTMLParser):
    """Fails on tags that do not nest, and gathers attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def details() -> Details:
    names = [f"transformer_blocks.{i}.{layer}" for i in range(3) for layer in ("attn1.to_q", "norm1.linear")]
    layers = [
        LayerDetail(
            name=name,
            format="int4" if "attn" in name else "int8",
            original_bytes=8000,
            compressed_bytes=2100,
            weight_error=0.0875,
            output_sqnr_db=21.5,
            timesteps=[
                TimestepDetail(timestep=999.0, sqnr_db=30.0 + index),
                TimestepDetail(timestep=12.5, sqnr_db=15.0),
            ],
        )
        for index, name in enumerate(names)
    ]
    head = LayerDetail(
        name="proj_out_2",
        format="fp16",
        original_bytes=90,
        compressed_bytes=90,
        weight_error=None,
        output_sqnr_db=None,
    )
    steps = [TimestepDetail(timestep=float(t), sqnr_db=20 + t / 100) for t in range(0, 1000, 100)]
    return Details(layers=[*layers, head], timesteps=steps)


def pictures(count: int = 12) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(count, 1, 28, 28, generator=generator)
    captions = [f"digit <{index}>" for index in range(count)]
    return Pictures(original, (original + 0.05).clamp(0, 1), captions)


@pytest.fixture(scope="module")
def report() -> Report:
    return parse_report(example())


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_html(
        report, recipe_yaml="name: w4a8\nalpha: 0.5 # <b>\n", details=details(), pictures=pictures()
    )


def test_page_is_well_formed_and_loads_nothing(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parser.tags}
    for _, attributes in parser.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"https?://|@import|url\((?!#)", page)


@pytest.mark.parametrize(
    "text",
    [
        "zoo:mnist-dit",
        "3.23×",  # 2000 / 620
        "4.96",
        "2.68×",
        "2.125",
        "2.375",
        "+0.2500",  # FID difference
        "0.1875",
        "1.500",  # KID × 10³
        "1.750",
        "−0.2500",
        "31.25",
        "31.00",
        "27.31",
        "0.9731",
        "0.0213",
        "22.72",
        "2.1e−05",
        "71.2",
        "84.2 ms",
        "31.4 ms",
        "700 B",
        "64 samples, 20 steps, guidance 4, seeds from 1003.",
        "10000 of mnist-test",
        "abababababab",
        "cdcdcdcdcdcd",
        "a processor",
        "avx2",
        "6.4 s",
        "830 MB",
        "a &lt;warning&gt; about samples",
        "alpha: 0.5 # &lt;b&gt;",
        "transformer_blocks.2.norm1.linear",
        "8.75 %",
        "21.5 dB",
    ],
)
def test_page_holds_every_figure(page: str, text: str) -> None:
    assert text in page


def test_worse_and_better_are_said_in_words(page: str) -> None:
    assert re.search(r"FID to real images <span.*?worse.*?</tr>", page)
    assert re.search(r"Model on disk <span.*?better.*?</tr>", page)
    assert re.search(r"CLIP score <span.*?worse.*?</tr>", page)


def test_plots_are_svg_that_follows_the_theme(page: str) -> None:
    drawings = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        assert ET.fromstring(drawing).attrib["role"] == "img"
        assert "var(--muted)" in drawing
        assert "#0101" not in drawing  # every placeholder colour became a variable
    assert "transformer_blocks" not in drawings[0]
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_error_of_every_layer_at_every_timestep_is_in_the_page(page: str) -> None:
    table = page[page.index('<table class="heat">') :]
    table = table[: table.index("</table>")]
    assert re.findall(r'<th scope="col">([^<]*)', table) == ["Timestep", "999", "12.5"]
    blocks = re.findall(r'<th scope="rowgroup" colspan="3">([^<]*)', table)
    assert blocks == [f"transformer_blocks.{index}" for index in range(3)]
    rows = re.findall(r'<th scope="row">([^<]*)</th>(.*?)</tr>', table.replace("<wbr>", ""))
    assert [name for name, _ in rows] == ["attn1.to_q", "norm1.linear"] * 3
    cells = re.findall(r'--heat: (\d+)%" title="([\d.]+) dB">(\d+)<', rows[1][1])
    assert cells == [("20", "31.00", "31"), ("100", "15.00", "15")]  # (35 - 31) / (35 - 15)


def test_a_page_without_errors_per_timestep_has_no_such_table(report: Report) -> None:
    old = details().model_copy(
        update={"layers": [layer.model_copy(update={"timesteps": []}) for layer in details().layers]}
    )
    assert 'class="heat"' not in render_html(report, recipe_yaml="a: 1\n", details=old)


def test_pictures_are_those_given(page: str) -> None:
    sources = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    assert len(sources) == 30  # original, compressed, difference of ten
    assert sources[0][1] == "Original, sample 1: digit &lt;0&gt;"
    image = Image.open(io.BytesIO(base64.b64decode(sources[0][0])))
    expected = (pictures().original[0, 0] * 255).round().to(torch.uint8)
    factor = image.width // 28
    small = image.resize((28, 28), Image.Resampling.NEAREST)
    assert factor >= 2
    assert np.array(small).tolist() == expected.tolist()
    assert "Difference × 16" in page  # 0.05 · 16 = 0.8 still fits into the range


def test_page_of_a_run_without_samples(report: Report) -> None:
    bare = report.model_copy(update={"fidelity": Fidelity.without_samples()})
    page = render_html(bare, recipe_yaml="name: w8a8\n")
    assert "No samples were drawn." in page
    assert "<svg" not in page
    assert "<img" not in page
    assert "PSNR</dt>" not in page  # no tile for what was not measured


def test_difference_is_amplified_by_the_named_factor() -> None:
    a = torch.zeros(1, 1, 20, 20)
    apart, factor = difference(a, a + 0.2)
    assert factor == 4
    torch.testing.assert_close(apart, torch.full_like(a, 0.8))
    assert difference(a, a)[1] == 64
    assert difference(a, a + 1)[1] == 1


@pytest.mark.parametrize(("count", "columns", "bands"), [(3, 3, 1), (8, 8, 1), (11, 8, 2), (40, 8, 2)])
def test_grid_dimensions(count: int, columns: int, bands: int) -> None:
    sample = pictures(count)
    cell = to_pil(sample.original[0]).width
    assert cell == 112  # 28 · 4, the first whole factor that reaches 96
    grid = image_grid(sample.original, sample.compressed)
    with_captions = image_grid(sample.original, sample.compressed, captions=sample.captions)
    # margins 16, labels 112, gaps 6; captions 32 above every band
    assert grid.size == (16 + 112 + columns * (cell + 6) + 16, 16 + bands * (3 * (cell + 6) + 16))
    assert with_captions.size == (grid.width, grid.height + bands * 32)


def test_grid_holds_the_images_where_the_labels_say() -> None:
    original = torch.stack([torch.full((1, 28, 28), v) for v in (0.2, 0.6)])
    drawn = image_grid(original, original + 0.08, captions=["a", "b " * 90])
    grid = Image.open(io.BytesIO(png_bytes(drawn)))
    x, y = 128 + 118 + 56, 16 + 32 + 56  # the middle of the second column's first picture
    levels = [grid.getpixel((x, y + row * 118)) for row in range(3)]
    assert levels == [(153,) * 3, (173,) * 3, (163,) * 3]  # 0.6, 0.68 and 0.08 amplified 8 times


def test_large_images_are_shown_smaller() -> None:
    assert to_pil(torch.rand(3, 512, 1024)).size == (256, 128)


def test_grid_of_unequal_sets_is_refused() -> None:
    with pytest.raises(InputError, match="expected equal"):
        image_grid(torch.rand(2, 1, 8, 8), torch.rand(3, 1, 8, 8))
