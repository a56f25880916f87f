"""Rules as data: ``fid: {max_increase: 2%}``, ``psnr: {min: 24}``, ``bytes: {max: 300MB}``."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from ditpress.errors import InputError
from ditpress.schema import Settings, parse, suggest

NOISE = 3.0
UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}

# What can be gated, and what it is.
METRICS = {
    "fid": "Fréchet distance to the reference images",
    "sfid": "Fréchet distance of spatial features to the reference images",
    "kid": "kernel distance to the reference images",
    "cmmd": "CLIP maximum mean discrepancy to the reference images",
    "precision": "samples in the manifold of the reference images",
    "recall": "reference images in the manifold of the samples",
    "inception_score": "Inception Score",
    "clip": "CLIP score",
    "fid_to_original": "Fréchet distance to the original's samples",
    "kid_to_original": "kernel distance to the original's samples",
    "psnr": "PSNR of same-seed pairs, dB",
    "ssim": "SSIM of same-seed pairs",
    "lpips": "LPIPS of same-seed pairs, or CLIP's feature distance",
    "output_sqnr_db": "SQNR of one step's output, dB",
    "timestep_sqnr_db": "the same at every timestep, dB",
    "layer_sqnr_db": "SQNR of every low-bit layer's output, dB",
    "parity_db": "SQNR of the ONNX file against the checkpoint in torch, dB",
    "parity_margin_db": "the same above the better SQNR that the two have against the original, dB",
    "bytes": "size of the model folder",
    "onnx_bytes": "size of the ONNX folder",
    "onnx_ms": "milliseconds per denoising step of the ONNX file",
    "speedup": "the original's time per step over that of the ONNX file",
}
TABLES = frozenset({"timestep_sqnr_db", "layer_sqnr_db"})  # one figure for every entry, and so is the rule
ON_CALLS = frozenset({"output_sqnr_db", "timestep_sqnr_db", "layer_sqnr_db"})  # on the same calls as before
DISTANCES = frozenset({"fid", "sfid", "fid_to_original"})  # need more samples than features
TIMED = frozenset({"onnx_ms", "speedup"})  # need a bench, and the same hardware


class Amount(Settings):
    """A number, or a part of the baseline's value."""

    value: float = Field(ge=0)
    relative: bool = False

    def of(self, baseline: float) -> float:
        """The amount in the unit of the metric."""
        return self.value * abs(baseline) if self.relative else self.value

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.relative else f"{self.value:g}"


def parse_amount(value: object) -> Amount:
    """``2%``, ``0.01`` or ``300MB``.

    Raises:
        InputError: none of them, negative, or not finite.
    """
    if isinstance(value, Amount):
        return value
    found = re.fullmatch(r"\s*([-+.\deE]+)\s*(%|[kKMG]?B)?\s*", str(value))
    number = None
    if found and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            number = float(found[1])
    if number is None or found is None or number < 0 or not math.isfinite(number):
        raise InputError(f"{value!r} is no amount of a rule; expected such as 0.01, 2% or 300MB")
    unit = found[2]
    if unit == "%":
        return Amount(value=number / 100, relative=True)
    return Amount(value=number * UNITS.get(unit or "B", 1))


def _absolute(value: object) -> float | None:
    if value is None:
        return None
    amount = parse_amount(value)
    if amount.relative:
        raise InputError(
            f"{value!r}: a part of nothing; min and max are absolute, else max_drop, max_increase"
        )
    return amount.value


Change = Annotated[
    Amount | None,
    BeforeValidator(lambda value: None if value is None else parse_amount(value)),
    PlainSerializer(lambda value: None if value is None else str(value)),
]
Bound = Annotated[float | None, BeforeValidator(_absolute)]


class Rule(Settings):
    """Bounds of one metric; all that are given must hold.

    A bound counts as broken only where the figure is beyond it by more than ``noise`` standard errors: of the
    difference of figure and baseline where it is relative to the baseline, of the figure else. The difference
    of figures of :data:`ON_CALLS` has none: both are measured on the same inputs.
    """

    max_increase: Change = None
    max_drop: Change = None
    max_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min: Bound = None
    max: Bound = None
    noise: float = Field(default=NOISE, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _something(self) -> Rule:
        if not self.bounds():
            raise InputError("a rule without a bound; give max_increase, max_drop, max_ratio, min or max")
        return self

    def bounds(self) -> dict[str, Any]:
        """The bounds that are given, by name."""
        data = self.model_dump(exclude={"noise"})
        return {name: value for name, value in data.items() if value is not None}

    def to_data(self) -> dict[str, Any]:
        """As it is written in a file."""
        return self.bounds() | ({} if self.noise == NOISE else {"noise": self.noise})

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.bounds().items())


Rules = dict[str, Rule]

DEFAULTS: dict[str, dict[str, Any]] = {
    "fid": {"max_increase": "2%"},
    "clip": {"max_drop": "1%"},
    "psnr": {"max_drop": 0.5},
    "ssim": {"max_drop": 0.01},
    "lpips": {"max_increase": "10%"},
    "output_sqnr_db": {"max_drop": 0.5},
    "timestep_sqnr_db": {"max_drop": 1.5},
    "layer_sqnr_db": {"max_drop": 0.5},
    "parity_margin_db": {"min": 3},
    "bytes": {"max_increase": "1%"},
    "onnx_bytes": {"max_increase": "1%"},
}


def parse_rules(data: object, where: str) -> Rules:
    """Rules by metric from parsed JSON or YAML.

    Raises:
        InputError: no mapping, an unknown metric, or a bad rule; names it.
    """
    if not isinstance(data, Mapping) or not data:
        raise InputError(f"{where}: expected metrics with their rules, such as psnr: {{min: 24}}")
    rules: Rules = {}
    for name, rule in data.items():
        if name not in METRICS:
            raise InputError(f'{where} has no metric "{name}"; {suggest(str(name), METRICS)}')
        rules[str(name)] = parse(Rule, rule, f"{where}.{name}")
    return rules
