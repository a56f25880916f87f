"""The report's figures as people read them: tiles and a table of original, compressed and difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ditpress.validate.report import Report

NONE = "–"


@dataclass(frozen=True)
class Tile:
    """One key figure: what it is, its value, and a line of context."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Row:
    """One line of the table; ``verdict`` is "better", "worse" or "" where it does not apply."""

    label: str
    hint: str
    original: str
    compressed: str
    difference: str
    verdict: str


def tiles(report: Report) -> list[Tile]:
    """The key figures of the header; figures that were not asked for have no tile."""
    size, fidelity, speed = report.size, report.fidelity, report.speed
    result = [
        Tile(
            "Size reduction",
            f"{size.original_bytes / size.compressed_bytes:.2f}×",
            f"{human_bytes(size.original_bytes)} → {human_bytes(size.compressed_bytes)}",
        ),
        Tile("Effective bits", f"{size.effective_bits:.2f}", "per parameter, everything counted"),
    ]
    if speed.speedup is not None:
        result.append(
            Tile(
                "Speed-up",
                f"{speed.speedup:.2f}×",
                f"{ms(speed.original_ms)} → {ms(speed.compressed_ms)} per step",
            )
        )
    if fidelity.compressed.fid is not None:
        result.append(
            Tile(
                "FID to real images",
                number(fidelity.compressed.fid),
                f"original {number(fidelity.original.fid)}",
            )
        )
    elif fidelity.compressed.fid_to_original is not None:
        note = f"{fidelity.samples} samples"
        result.append(Tile("FID to original", number(fidelity.compressed.fid_to_original), note))
    if fidelity.paired.psnr is not None:
        result.append(Tile("PSNR", f"{fidelity.paired.psnr:.1f} dB", "same-seed pairs"))
    return result


def rows(report: Report) -> list[Row]:
    """The table. Arrows in ``hint`` say which direction is better."""
    size, fidelity, speed, parity = report.size, report.fidelity, report.speed, report.parity
    before, after, pairs = fidelity.original, fidelity.compressed, fidelity.paired
    original_bits = 8 * size.original_bytes / size.parameters
    return [
        _compared("Model on disk", "↓", size.original_bytes, size.compressed_bytes, human_bytes, ratio=True),
        _single("ONNX on disk", "all files", size.onnx_bytes, human_bytes),
        _compared("Bits per parameter", "↓", original_bits, size.effective_bits, fixed(2)),
        _compared("Time per denoising step", "↓", speed.original_ms, speed.compressed_ms, ms, ratio=True),
        _compared("FID to real images", "↓", before.fid, after.fid, number),
        _compared("KID to real images", "↓ × 10³", _kilo(before.kid), _kilo(after.kid), number),
        _compared("CLIP score", "↑", before.clip, after.clip, fixed(2), higher=True),
        _single("FID to the original's samples", "↓", after.fid_to_original, number),
        _single("KID to the original's samples", "↓ × 10³", _kilo(after.kid_to_original), number),
        _single("PSNR of pairs", "↑ dB", pairs.psnr, fixed(2)),
        _single("SSIM of pairs", "↑", pairs.ssim, fixed(4)),
        _single(
            "Feature distance of pairs" if fidelity.lpips_network is None else "LPIPS of pairs",
            "↓ lpips",
            pairs.lpips,
            number,
        ),
        _single("SQNR of one step's output", "↑ dB", pairs.output_sqnr_db, fixed(2)),
        _single("ONNX against torch, outputs", "↓ max |Δ|", parity.onnx_vs_torch_max_abs, scientific),
        _single("ONNX against torch, outputs", "↑ PSNR dB", parity.onnx_vs_torch_psnr, fixed(1)),
        _single("ONNX against torch, outputs", "↓ of the range", parity.onnx_vs_torch_relative, scientific),
        _single(
            "ONNX against torch, cut at int8 layers", "↓ of the range", parity.pieces_relative, scientific
        ),
        _single("Fused graph against the unfused", "↓ of the range", parity.fusion_relative, scientific),
    ]


def conditions(report: Report) -> str:
    """Under which conditions the figures were taken, in sentences."""
    fidelity = report.fidelity
    if not fidelity.samples:
        return "No samples were drawn."
    drawn = [f"{fidelity.samples} samples"]
    if fidelity.steps is not None:
        drawn.append(f"{fidelity.steps} steps")
    if fidelity.guidance is not None:
        drawn.append(f"guidance {fidelity.guidance:g}")
    if fidelity.first_seed is not None:
        drawn.append(f"seeds from {fidelity.first_seed}")
    sentences = [", ".join(drawn) + "."]
    if fidelity.extractor is not None:
        sentences.append(
            f"Features: {fidelity.extractor.name}, {fidelity.extractor.num_features} numbers per image, "
            f"sha256 {fidelity.extractor.sha256[:12]}; FID, KID, CLIP score and feature distance can be "
            "compared only with figures of the same extractor."
        )
    for network, what in ((fidelity.inception, "FID and its kin"), (fidelity.lpips_network, "LPIPS")):
        if network is not None:
            sentences.append(f"{what}: {network.name}, sha256 {network.sha256[:12]}.")
    if fidelity.reference is not None:
        sentences.append(
            f"Real images: {fidelity.reference.count} of {fidelity.reference.name}, sha256 "
            f"{fidelity.reference.sha256[:12]}."
        )
    if fidelity.kid_subset_size is not None:
        sentences.append(f"KID: mean over random subsets of {fidelity.kid_subset_size}.")
    return " ".join(sentences)


def _compared(
    label: str,
    hint: str,
    original: float | None,
    compressed: float | None,
    show: Callable[[float | None], str],
    *,
    higher: bool = False,
    ratio: bool = False,
) -> Row:
    difference, verdict = NONE, ""
    if original is not None and compressed is not None:
        delta = compressed - original
        quotient = original / compressed if ratio and compressed else None
        difference = (
            f"{quotient:.2f}×" if quotient is not None else f"{'−' if delta < 0 else '+'}{show(abs(delta))}"
        )
        if show(original) != show(compressed):
            verdict = "better" if (delta > 0) == higher else "worse"
    return Row(label, hint, show(original), show(compressed), difference, verdict)


def _single(label: str, hint: str, value: float | None, show: Callable[[float | None], str]) -> Row:
    return Row(label, hint, NONE, show(value), NONE, "")


def _kilo(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def human_bytes(count: float | None) -> str:
    """Bytes in a decimal unit (1 MB = 10^6 bytes), three digits."""
    if count is None:
        return NONE
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{count:.0f} B"


def fixed(decimals: int) -> Callable[[float | None], str]:
    """A formatter with so many decimals."""
    return lambda value: NONE if value is None else f"{value:.{decimals}f}".replace("-", "−")


def number(value: float | None) -> str:
    """About four significant digits, whatever the scale of the extractor's features."""
    if value is None:
        return NONE
    if value == 0 or abs(value) >= 1e-3:
        decimals = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3 if abs(value) >= 1 else 4
        return f"{value:.{decimals}f}".replace("-", "−")
    return scientific(value)


def scientific(value: float | None) -> str:
    """Two digits and a power of ten."""
    return NONE if value is None else f"{value:.1e}".replace("-", "−")


def ms(value: float | None) -> str:
    """Milliseconds."""
    return NONE if value is None else f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def seconds(value: float) -> str:
    """Seconds, or minutes and seconds."""
    return f"{value:.1f} s" if value < 100 else f"{int(value // 60)} min {int(value % 60):02d} s"
