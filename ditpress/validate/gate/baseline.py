"""The baseline: small, sorted JSON in the user's repository; what a change of it means shows in a review."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ditpress.errors import InputError
from ditpress.files import write_atomic
from ditpress.schema import explain
from ditpress.validate.gate.figures import Figures, Settings, rounded
from ditpress.validate.gate.rules import Rules, parse_rules
from ditpress.validate.report import Strict

SCHEMA = 1


class Baseline(Strict):
    """The whole file. ``versions``: of the libraries behind the figures, for people; they may differ."""

    schema_version: Literal[1] = Field(alias="schema")
    recipe: str
    settings: Settings
    versions: dict[str, str]
    figures: Figures
    rules: dict[str, Any]

    def parsed_rules(self) -> Rules:
        """The rules, checked."""
        return parse_rules(self.rules, "rules")

    def to_json(self) -> str:
        """Indented, keys sorted, numbers to six digits."""
        data = rounded(self.model_dump(by_alias=True, mode="json", exclude_none=True))
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Write it atomically."""
        write_atomic(path, self.to_json().encode())


def load_baseline(path: str | Path) -> Baseline:
    """Read and check a baseline.

    Raises:
        InputError: missing, truncated or hand-broken JSON, another schema, a missing, unknown or bad field.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise InputError(f"baseline {path}: no such file; write it with --update") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"baseline {path}: not readable as JSON ({error}); restore it from version control, or write it "
            "anew with --update"
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"baseline {path}: a JSON {type(data).__name__}; expected the object of a baseline")
    if data.get("schema") != SCHEMA:
        raise InputError(
            f"baseline {path}: schema {data.get('schema')!r}; this ditpress reads schema {SCHEMA}: write it "
            "anew with --update"
        )
    filled = {**data, "settings": _filled(data.get("settings"))}
    try:
        baseline = Baseline.model_validate(filled)
    except ValidationError as error:
        raise InputError(f"baseline {path}: {explain(error, Baseline, '')}") from None
    try:
        baseline.parsed_rules()
    except InputError as error:
        raise InputError(f"baseline {path}: {error}") from None
    return baseline


def _filled(settings: Any) -> Any:
    """Settings that are null are not written; a setting that may not be null stays missing."""
    if not isinstance(settings, dict):
        return settings
    optional = {
        name: None for name, field in Settings.model_fields.items() if "None" in str(field.annotation)
    }
    return {**optional, **settings}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: a merge that kept both sides is no baseline."""
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = next(name for name, _ in pairs if [key for key, _ in pairs].count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return data
