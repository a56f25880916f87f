"""``ditpress check OUT --baseline FILE``: measure, compare, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ditpress.errors import GateError, InputError
from ditpress.recipes.bench import bench_run
from ditpress.recipes.judge import Judge, Judged, versions
from ditpress.validate.gate.baseline import Baseline, load_baseline
from ditpress.validate.gate.compare import Verdict, compare, require_enough, require_like, require_machine
from ditpress.validate.gate.figures import Figure
from ditpress.validate.gate.rules import DEFAULTS, DISTANCES, TIMED, Rules, parse_rules
from ditpress.validate.speed import hardware


@dataclass(frozen=True)
class Check:
    """The outcome: verdicts of all rules; ``updated``: the baseline was written, there are no verdicts."""

    out: Path
    baseline: Path
    verdicts: list[Verdict]
    notes: list[str]
    updated: bool = False

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def require(self) -> None:
        """Raise GateError where a rule failed; names the rules."""
        failed = [verdict for verdict in self.verdicts if not verdict.passed]
        if failed:
            reasons = "; ".join(f"{verdict.name} {verdict.reason} ({verdict.rule})" for verdict in failed)
            raise GateError(f"{self.out}: {len(failed)} of {len(self.verdicts)} rules failed: {reasons}")


def check(
    out: str | Path,
    baseline: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
    rules: str | Path | Mapping[str, Any] | None = None,
    update: bool = False,
) -> Check | None:
    """Measure the run ``out`` as it lies there and hold it against the baseline.

    Args:
        out: a finished run folder.
        baseline: the file; with ``update`` it may be missing.
        settings: of the validation, in the place of the run's: samples, steps, guidance, extractor, ...
        seed: of the images; another one than the baseline's is compared with the noise that this brings.
        rules: a YAML file or a mapping in the place of the baseline's rules.
        update: write what was measured as the new baseline; its rules stay, unless ``rules`` are given.

    Returns:
        the outcome; None in all processes of ``torchrun`` but the first.

    Raises:
        InputError: no such run, a broken baseline, unlike settings, or too few samples for a rule.
    """
    path = Path(baseline)
    before = None if update and not path.exists() else load_baseline(path)
    given = None if rules is None else read_rules(rules)
    call_seed = None if before is None or update else before.settings.seed
    judge = Judge(out, dict(settings or {}), seed=seed, call_seed=call_seed)
    wanted = given if given is not None else None if before is None else before.parsed_rules()
    if not update:
        assert before is not None
        require_like(judge.settings, before.settings, str(path))
    if wanted is not None:
        require_enough(judge.settings, wanted)
    if before is not None and wanted is not None and not update:
        require_machine(_machine(hardware(), torch.get_num_threads()), before.figures.hardware, wanted)
    judged = judge.measure()
    if judged is None:
        return None
    judged = _timed(Path(out), judged, wanted)
    if update:
        wanted = wanted if wanted is not None else _defaults(judged)
        fresh = _baseline(judge, judged, wanted)
        compare(judged.figures, fresh)  # every rule can be judged, or the file would be of no use
        fresh.save(path)
        return Check(Path(out), path, [], [], updated=True)
    assert before is not None
    if given is not None:
        before = before.model_copy(update={"rules": {name: rule.to_data() for name, rule in given.items()}})
    verdicts = compare(judged.figures, before)
    return Check(Path(out), path, verdicts, _notes(judge, before))


def read_rules(rules: str | Path | Mapping[str, Any]) -> Rules:
    """Rules from a YAML file or a mapping.

    Raises:
        InputError: no such file, not YAML, or a bad rule.
    """
    if isinstance(rules, Mapping):
        return parse_rules(rules, "rules")
    path = Path(rules)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"rules {path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"rules {path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    return parse_rules(data, f"rules {path}")


def _baseline(judge: Judge, judged: Judged, rules: Rules) -> Baseline:
    return Baseline(
        schema=1,
        recipe=judge.recipe.name,
        settings=judged.settings,
        versions=versions(),
        figures=judged.figures,
        rules={name: rule.to_data() for name, rule in rules.items()},
    )


def _defaults(judged: Judged) -> Rules:
    """The rules of a new baseline: the usual ones, of what was measured, and FID where it can be gated."""
    settings, figures = judged.settings, judged.figures
    known = {*figures.metrics, *(name for name, table in figures.tables.items() if table)}
    if settings.samples <= settings.num_features:
        known -= DISTANCES
    return parse_rules({name: rule for name, rule in DEFAULTS.items() if name in known}, "rules")


def _timed(out: Path, judged: Judged, rules: Rules | None) -> Judged:
    """With the speed measured, where a rule asks for it."""
    if not TIMED & set(rules or {}):
        return judged
    speed = bench_run(out)
    metrics = dict(judged.figures.metrics)
    for name, value in (("onnx_ms", speed.compressed_ms), ("speedup", speed.speedup)):
        if value is not None:
            metrics[name] = Figure(value=value)
    machine = _machine(speed.hardware, speed.threads)
    figures = judged.figures.model_copy(update={"metrics": metrics, "hardware": machine})
    return Judged(**{**vars(judged), "figures": figures})


def _machine(cpu: str, threads: int) -> str:
    """What must be equal for times to be compared."""
    return f"{cpu}, {threads} threads"


def _notes(judge: Judge, before: Baseline) -> list[str]:
    """What differs and may differ, for people."""
    notes = []
    if judge.settings.seed != before.settings.seed:
        notes.append(f"seed {judge.settings.seed}, the baseline's is {before.settings.seed}")
    if judge.recipe.name != before.recipe:
        notes.append(f"recipe {judge.recipe.name}, the baseline's is {before.recipe}")
    for name, version in versions().items():
        if before.versions.get(name) != version:
            notes.append(f"{name} {version}, the baseline was taken with {before.versions.get(name)}")
    return notes
