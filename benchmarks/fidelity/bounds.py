"""What the figures must be, and what was measured."""

from __future__ import annotations

from collections.abc import Callable

from comparison.checks import Check, fid_noise, share_check
from comparison.results import Entry, fid, sqnr
from fidelity.results import Results
from fidelity.rows import ORIGINAL, RECIPES, Row

OVER_RTN = 2.0  # dB
OVER_RTN_COARSE = 4.0  # for formats where plain rounding falls apart
COARSE = frozenset({"fp4", "ternary", "vq-2bit", "vq-3bit"})
FID_FACTOR = 1.02  # w4a8 against the original
SHARE_POINTS = 0.03  # of the recognised share
KEEP_SHARE = ("ternary", "vq-2bit")


def checks(results: Results) -> list[Check]:
    """Every requirement on what was measured."""
    found = [_over_rtn(results, row) for row in RECIPES]
    found += [_unbeaten(results, row, "FID", _better_fid) for row in RECIPES]
    found += [_unbeaten(results, row, "output SQNR", _better_sqnr) for row in RECIPES]
    found.append(_fid_of_w4a8(results))
    original = results.get(ORIGINAL.name)
    return [*found, *(share_check(name, results.get(name), original, SHARE_POINTS) for name in KEEP_SHARE)]


def _over_rtn(results: Results, row: Row) -> Check:
    limit = OVER_RTN_COARSE if row.name in COARSE else OVER_RTN
    text = f"{row.title}: output SQNR above plain RTN at its bits by {limit:.0f} dB"
    ours, plain = results.get(row.name), results.get(f"rtn-{row.name}")
    first, second = (None if entry is None else sqnr(entry) for entry in (ours, plain))
    if first is None or second is None:
        return Check(text, "", None)
    return Check(text, f"{first:.2f} - {second:.2f} = {first - second:.2f} dB", first - second >= limit)


def rivals(results: Results, row: Row) -> list[tuple[Row, Entry]]:
    """Baselines that the recipe must not lose to.

    All that store no more than it does, and those of its own nominal bits that store more. What a baseline of
    twice the bits reaches (int8 beside a 4-bit recipe) is no measure.
    """
    ours = results.get(row.name)
    if ours is None:
        return []
    return [
        (other, entry)
        for other, entry in results.measured("plain", "peer")
        if other.bits <= row.bits or entry["effective_bits"] <= ours["effective_bits"]
    ]


def _better_fid(theirs: Entry, ours: Entry, noise: float) -> bool:
    return fid(theirs) < fid(ours) - noise


def _better_sqnr(theirs: Entry, ours: Entry, noise: float) -> bool:
    a, b = sqnr(theirs), sqnr(ours)
    return a is not None and b is not None and a > b


def _unbeaten(
    results: Results, row: Row, figure: str, better: Callable[[Entry, Entry, float], bool]
) -> Check:
    """A FID that is less by no more than its noise from one set of seeds to the next is not better."""
    text = f"{row.title}: no baseline of its bits or fewer has a better {figure}"
    ours, original = results.get(row.name), results.get(ORIGINAL.name)
    others = rivals(results, row)
    if ours is None or original is None or not others:
        return Check(text, "", None)
    noise = fid_noise(original)
    winners = [other.title for other, entry in others if better(entry, ours, noise)]
    return Check(
        text, f"beaten by {', '.join(winners)}" if winners else f"{len(others)} compared", not winners
    )


def _fid_of_w4a8(results: Results) -> Check:
    text = "w4a8: FID at most 2 % above the original's, or within its noise over five sets of seeds"
    ours, original = results.get("w4a8"), results.get(ORIGINAL.name)
    if ours is None or original is None:
        return Check(text, "", None)
    noise = fid_noise(original)
    limit = max(FID_FACTOR * fid(original), fid(original) + noise)
    return Check(text, f"{fid(ours):.3f}, at most {limit:.3f} (noise {noise:.3f})", fid(ours) <= limit)
