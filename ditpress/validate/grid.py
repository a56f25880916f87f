"""Pictures side by side: original, compressed and their difference for the same seeds."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditpress.errors import InputError

SMALL, LARGE = 96, 256  # shown images are scaled to lie between these many pixels
COLUMNS = 8
GAP, LABEL_WIDTH, CAPTION_HEIGHT, MARGIN = 6, 112, 32, 16
CAPTION_LINES = 2
PAPER, INK, MUTED = (255, 255, 255), (28, 32, 38), (107, 114, 128)


def difference(original: Tensor, compressed: Tensor) -> tuple[Tensor, int]:
    """Absolute difference, amplified so that it can be seen, and the factor.

    The factor is the largest power of two, at most 64, that keeps 99.5 % of the pixels within range.
    """
    absolute = (original.float() - compressed.float()).abs()
    # numpy: torch.quantile refuses more than 16 million values
    typical = float(np.quantile(absolute.numpy(force=True), 0.995))
    factor = 64 if typical * 64 <= 1 else 2 ** max(0, math.floor(-math.log2(typical)))
    return (absolute * factor).clamp(0, 1), factor


def to_pil(image: Tensor) -> Image.Image:
    """Float [C, H, W] in [0, 1], C = 1 or 3, to a PIL image of a size fit for looking at.

    Small images are enlarged by a whole factor without smoothing, so that single pixels stay visible.
    """
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    longest = max(picture.size)
    if longest < SMALL:
        factor = math.ceil(SMALL / longest)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if longest > LARGE:
        picture.thumbnail((LARGE, LARGE), Image.Resampling.LANCZOS)
    return picture


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def image_grid(
    original: Tensor, compressed: Tensor, *, captions: Sequence[str] | None = None, count: int = 16
) -> Image.Image:
    """Bands of three labelled rows (original, compressed, difference) of up to eight samples each.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1]; image i of both from the same seed.
        captions: shown above the samples, shortened to the width of one.
        count: at most so many samples, the first ones.
    """
    if original.shape != compressed.shape or original.ndim != 4 or not len(original):
        raise InputError(
            f"image grid: {tuple(original.shape)} and {tuple(compressed.shape)}; expected equal [n, C, H, W]"
        )
    original, compressed = original[:count], compressed[:count]
    apart, factor = difference(original, compressed)
    rows = [("original", original), ("compressed", compressed), (f"difference × {factor}", apart)]
    cell = to_pil(original[0]).size
    columns = min(COLUMNS, len(original))
    bands = math.ceil(len(original) / columns)
    caption_height = CAPTION_HEIGHT if captions is not None else 0
    band_height = caption_height + 3 * (cell[1] + GAP) + MARGIN
    size = (2 * MARGIN + LABEL_WIDTH + columns * (cell[0] + GAP), MARGIN + bands * band_height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = _font(12), _font(10)
    for band in range(bands):
        top = MARGIN + band * band_height
        members = range(band * columns, min((band + 1) * columns, len(original)))
        for column, index in enumerate(members):
            left = MARGIN + LABEL_WIDTH + column * (cell[0] + GAP)
            if captions is not None:
                draw.text((left, top), _wrap(captions[index], small, cell[0]), MUTED, small, spacing=2)
            for row, (_, images) in enumerate(rows):
                sheet.paste(to_pil(images[index]), (left, top + caption_height + row * (cell[1] + GAP)))
        for row, (label, _) in enumerate(rows):
            middle = top + caption_height + row * (cell[1] + GAP) + cell[1] // 2
            draw.text((MARGIN, middle), label, INK, font, anchor="lm")
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text in at most :data:`CAPTION_LINES` lines of ``width`` pixels, cut with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > CAPTION_LINES
    lines = lines[:CAPTION_LINES]
    for index, line in enumerate(lines):
        end = "…" if cut and index == CAPTION_LINES - 1 else ""
        while line and font.getlength(line + end) > width:
            line, end = line[:-1], "…"
        lines[index] = line + end
    return "\n".join(lines)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib ships a font that knows "×" and most scripts; Pillow's own does not."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
