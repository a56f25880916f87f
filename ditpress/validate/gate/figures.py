"""What was measured, under which settings: one side of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from ditpress.validate.report import Fidelity, Strict

DIGITS = 6


class Settings(Strict):
    """Everything that makes two sets of figures comparable; all of it must be equal, but the seed.

    Images of other seeds are other samples of the same thing: their noise is what standard errors say.
    ``call_samples``: images on whose way from noise steps and layers are compared; these are always those of
    the baseline's seed, so that the difference of two figures of them holds no noise of samples.
    """

    model: str
    fingerprint: str
    against: str | None
    samples: int
    call_samples: int
    steps: int | None
    guidance: float | None
    seed: int
    scheduler: str
    scheduler_sha256: str
    extractor: str
    extractor_sha256: str
    num_features: int
    inception_sha256: str | None
    lpips_sha256: str | None
    reference: str | None
    reference_sha256: str | None


class Figure(Strict):
    """A value and its standard error over other samples; null where it has none."""

    value: float
    error: float | None = None


class Figures(Strict):
    """Metrics by name; those that have an entry for every layer or timestep in ``tables``."""

    metrics: dict[str, Figure] = Field(default_factory=dict)
    tables: dict[str, dict[str, Figure]] = Field(default_factory=dict)
    hardware: str | None = None


COMPRESSED = (
    *("fid", "sfid", "kid", "cmmd", "precision", "recall", "inception_score", "clip"),
    *("fid_to_original", "kid_to_original"),
)
PAIRED = ("psnr", "ssim", "lpips", "output_sqnr_db")


def figures_of(fidelity: Fidelity) -> dict[str, Figure]:
    """The figures of the fidelity part of a report under the names that rules use."""
    found: dict[str, Figure] = {}
    for group, names in (("compressed", COMPRESSED), ("paired", PAIRED)):
        for name in names:
            value = getattr(getattr(fidelity, group), name)
            if value is not None:
                interval = fidelity.intervals.get(f"{group}.{name}")
                found[name] = Figure(value=value, error=None if interval is None else interval.standard_error)
    return found


def rounded(data: Any) -> Any:
    """Numbers to six significant digits, so that a file shows no digits that mean nothing."""
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}")
    if isinstance(data, Mapping):
        return {key: rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list) else data
