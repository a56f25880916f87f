"""Figures against a baseline: refused where the settings differ, else one verdict per rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ditpress.errors import InputError
from ditpress.validate.gate.baseline import Baseline
from ditpress.validate.gate.figures import Figure, Figures, Settings
from ditpress.validate.gate.rules import DISTANCES, ON_CALLS, TABLES, TIMED, Rule

# How to get the baseline's setting back, where an option does.
OPTIONS = {"samples": "--samples", "steps": "--steps", "guidance": "--guidance", "against": "--against"}
OPTIONS |= {
    "extractor_sha256": "--extractor",
    "reference_sha256": "--reference",
    "inception_sha256": "--inception",
    "lpips_sha256": "--lpips",
}


@dataclass(frozen=True)
class Verdict:
    """What one rule says of one metric; of a table, of its worst entry.

    ``limit``: what the figure may not pass, the noise margin included; ``margin``: that margin;
    ``entry``: the layer or timestep; ``reason``: empty where the rule holds.
    """

    metric: str
    rule: str
    value: float
    baseline: float | None
    limit: float
    margin: float
    entry: str | None
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason

    @property
    def name(self) -> str:
        """The metric, and the entry of a table."""
        return self.metric if self.entry is None else f"{self.metric} [{self.entry}]"


def require_like(now: Settings, baseline: Settings, path: str) -> None:
    """Refuse to compare figures that were taken under other settings.

    Raises:
        InputError: names every setting that differs, both values, and what to do.
    """
    unlike = [
        name
        for name in Settings.model_fields
        if name not in ("seed", "model", "extractor", "reference")  # names: the hashes decide
        and getattr(now, name) != getattr(baseline, name)
    ]
    if not unlike:
        return
    differences = "; ".join(
        f"{name} {_short(getattr(baseline, name))} there, {_short(getattr(now, name))} here"
        for name in unlike
    )
    options = " ".join(OPTIONS[name] for name in unlike if name in OPTIONS)
    back = (
        f"measure with the baseline's settings ({options})" if options else "check the model of the baseline"
    )
    raise InputError(
        f"baseline {path}: of other settings, figures cannot be compared: {differences}; {back}, or accept "
        "the new ones with --update"
    )


def require_enough(settings: Settings, metrics: Mapping[str, object]) -> None:
    """Refuse to gate a Fréchet distance on a covariance that cannot have full rank.

    Raises:
        InputError: too few samples; says the minimum.
    """
    wanted = sorted(DISTANCES & set(metrics))
    if wanted and settings.samples <= settings.num_features:
        raise InputError(
            f"rule {wanted[0]}: {settings.samples} samples give a singular covariance of "
            f"{settings.num_features} features; draw at least {settings.num_features + 1} with --samples, or "
            "gate on kid and cmmd instead"
        )


def require_machine(now: str, baseline: str | None, metrics: Mapping[str, object]) -> None:
    """Refuse to compare times of two machines, or of other numbers of threads.

    Raises:
        InputError: a timed metric has a rule, and the baseline was timed elsewhere or not at all.
    """
    for metric in TIMED & set(metrics):
        if now != baseline:
            raise InputError(
                f"rule {metric}: timed on {baseline} there, on {now} here; run the check on the baseline's "
                "hardware, or drop the rule"
            )


def compare(now: Figures, baseline: Baseline) -> list[Verdict]:
    """One verdict per rule of the baseline, in its order.

    Raises:
        InputError: a rule's metric was not measured here or there, or was timed on other hardware.
    """
    verdicts = []
    for metric, rule in baseline.parsed_rules().items():
        require_machine(str(now.hardware), baseline.figures.hardware, {metric: rule})
        if metric in TABLES:
            verdicts.append(_table(metric, rule, now, baseline.figures))
            continue
        figure, before = now.metrics.get(metric), baseline.figures.metrics.get(metric)
        if figure is None:
            raise InputError(
                f"rule {metric}: was not measured (it needs reference images, captions or more samples); "
                "measure it or drop the rule"
            )
        verdicts.append(judge(metric, rule, figure, before))
    return verdicts


def judge(metric: str, rule: Rule, now: Figure, before: Figure | None, entry: str | None = None) -> Verdict:
    """The verdict on one figure: that of the bound it comes nearest to, or breaks most.

    Raises:
        InputError: the rule is relative to a baseline that does not have the metric.
    """
    found = []
    for name, bound in rule.bounds().items():
        relative = name not in ("min", "max")
        if relative and before is None:
            raise InputError(f"rule {metric}: the baseline has no such figure; add it with --update")
        base = before.value if before is not None else None
        error = now.error or 0.0
        if relative and metric in ON_CALLS:
            error = 0.0
        elif relative and before is not None:
            error = math.hypot(error, (before.error or 0.0) * (bound if name == "max_ratio" else 1))
        margin = rule.noise * error
        limit, upper = _limit(name, rule, base or 0.0)
        limit += margin if upper else -margin
        excess = now.value - limit if upper else limit - now.value
        reason = f"{now.value:.5g} is {'above' if upper else 'below'} {limit:.5g}" if excess > 0 else ""
        text = f"{name} {getattr(rule, name)}"
        found.append((excess, Verdict(metric, text, now.value, base, limit, margin, entry, reason)))
    return max(found, key=lambda item: item[0])[1]


def _limit(name: str, rule: Rule, base: float) -> tuple[float, bool]:
    """The bound in the unit of the metric, and whether it is an upper one."""
    if name == "max_increase" and rule.max_increase is not None:
        return base + rule.max_increase.of(base), True
    if name == "max_drop" and rule.max_drop is not None:
        return base - rule.max_drop.of(base), False
    if name == "max_ratio" and rule.max_ratio is not None:
        return base * rule.max_ratio, True
    if name == "max" and rule.max is not None:
        return rule.max, True
    assert rule.min is not None
    return rule.min, False


def _table(metric: str, rule: Rule, now: Figures, before: Figures) -> Verdict:
    here, there = now.tables.get(metric, {}), before.tables.get(metric, {})
    if not here:
        raise InputError(
            f"rule {metric}: was not measured; it needs the stages/ of the run, or drop the rule"
        )
    if set(here) != set(there):
        odd = min(set(here) ^ set(there))
        raise InputError(
            f"rule {metric}: {len(there)} entries in the baseline, {len(here)} here, such as {odd} in one of "
            "them only; the baseline is of another compression: accept it with --update"
        )
    verdicts = [judge(metric, rule, here[entry], there[entry], entry) for entry in sorted(here)]
    return max(verdicts, key=lambda verdict: _badness(verdict))


def _badness(verdict: Verdict) -> float:
    """How far beyond its limit, relative to the change that was allowed for where there is a baseline."""
    upper = verdict.rule.startswith(("max_increase", "max_ratio", "max "))
    return verdict.value - verdict.limit if upper else verdict.limit - verdict.value


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
