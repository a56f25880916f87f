"""What the figures must be, and what was measured."""

from __future__ import annotations

from comparison.checks import Check, share_check
from comparison.results import Entry, fid, sqnr
from pruning.results import Mean, Results, Seeds, over_seeds
from pruning.rows import BEST_DEPTH, DEPTH_RECIPE, FINE_TUNED, ORIGINAL

DEPTH_SPEED = 1.8  # times the original's step in fp32, both in ONNX Runtime
TINY_SPEED = 3.5
TINY_SIZE = 12  # times smaller than the original's parameters in fp32
SHARE_POINTS = 0.02  # of the recognised share


def checks(results: Results) -> list[Check]:
    """Every requirement on what was measured."""
    best, original = results.get(BEST_DEPTH.name), results.get(ORIGINAL.name)
    half, tiny = results.get(DEPTH_RECIPE.name), results.get("tiny")
    found = [
        _speed(DEPTH_RECIPE.title, half, DEPTH_SPEED),
        share_check(DEPTH_RECIPE.title, half, original, SHARE_POINTS),
        _size(tiny, original),
        _speed("tiny", tiny, TINY_SPEED),
    ]
    for rival in ("output", "similarity"):
        found += _better(results, "depth-learned", f"depth-{rival}", "learned blocks", f"those of {rival}")
    for ours in ("taylor", "hessian"):
        for rival in ("random", "magnitude"):
            found += _better(results, f"width-{ours}", f"width-{rival}", f"units by {ours}", f"by {rival}")
    return found + _distilled(best, results.get(FINE_TUNED.name))


def _speed(name: str, entry: Entry | None, least: float) -> Check:
    text = f"{name}: a step at least {least} times as fast as the original's in fp32"
    if entry is None:
        return Check(text, "", None)
    speedup = entry["speed"]["speedup"]
    return Check(text, f"{speedup:.2f}", speedup >= least)


def _size(tiny: Entry | None, original: Entry | None) -> Check:
    text = f"tiny: a file of at most 1/{TINY_SIZE} of the original's parameters in fp32"
    if tiny is None or original is None:
        return Check(text, "", None)
    whole = 4 * original["parameters"]
    return Check(text, f"1/{whole / tiny['file_bytes']:.1f}", TINY_SIZE * tiny["file_bytes"] <= whole)


def _better(results: Results, ours: str, rival: str, title: str, other: str) -> list[Check]:
    """In the means over all seeds, after the same training: output SQNR and FID."""
    first, second = (over_seeds(results, of) for of in (ours, rival))
    return [
        _compared(f"{title} give a higher output SQNR than {other}", first, second, "sqnr"),
        _compared(f"{title} give a lower FID than {other}", first, second, "fid"),
    ]


def _compared(text: str, ours: Seeds | None, theirs: Seeds | None, figure: str) -> Check:
    if ours is None or theirs is None or not (ours.complete and theirs.complete):
        return Check(text, "", None)
    a: Mean = getattr(ours, figure)
    b: Mean = getattr(theirs, figure)
    gain = a.value - b.value if figure == "sqnr" else b.value - a.value
    return Check(text, f"{spread(a, figure)} against {spread(b, figure)}", gain > 0)


def spread(mean: Mean, figure: str) -> str:
    """Mean and, of several seeds, the standard deviation."""
    digits, unit = (2, " dB") if figure == "sqnr" else (3, "")
    deviation = f" ± {mean.deviation:.{digits}f}" if mean.deviation else ""
    return f"{mean.value:.{digits}f}{deviation}{unit}"


def _distilled(ours: Entry | None, theirs: Entry | None) -> list[Check]:
    texts = [
        f"distillation gives a {figure} than fine-tuning on as many steps"
        for figure in ("higher output SQNR", "lower FID")
    ]
    if ours is None or theirs is None:
        return [Check(text, "", None) for text in texts]
    a, b = sqnr(ours) or 0.0, sqnr(theirs) or 0.0
    return [
        Check(texts[0], f"{a:.2f} dB against {b:.2f} dB", a > b),
        Check(texts[1], f"{fid(ours):.3f} against {fid(theirs):.3f}", fid(ours) < fid(theirs)),
    ]
