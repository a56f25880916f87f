"""Requirements on figures."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from comparison.results import Entry

Verdict = bool | None
_SIGN: dict[Verdict, str] = {True: "yes", False: "**no**", None: "not measured"}


@dataclass(frozen=True)
class Check:
    """A requirement: what, the figures, and whether it holds (None: not measured)."""

    text: str
    measured: str
    holds: Verdict


def fid_noise(original: Entry) -> float:
    """Standard deviation of the original's FID over its sets of seeds; 0 where there is one set."""
    fids = original["fids"]
    return statistics.stdev(fids) if len(fids) > 1 else 0.0


def share_check(name: str, ours: Entry | None, original: Entry | None, points: float) -> Check:
    """The recognised share of a row against the original's; ``points``: how far below it may be, a share."""
    text = f"{name}: recognised share at most {100 * points:.0f} points below the original's"
    if ours is None or original is None or ours["recognised"] is None or original["recognised"] is None:
        return Check(text, "", None)
    a, b = ours["recognised"], original["recognised"]
    return Check(text, f"{a:.1%} of {b:.1%}", a >= b - points)


def checks_table(found: list[Check]) -> list[str]:
    """What is required, and what came of it."""
    lines = ["| required | measured | holds |", "|---|---|---|"]
    return [*lines, *(f"| {check.text} | {check.measured} | {_SIGN[check.holds]} |" for check in found)]
