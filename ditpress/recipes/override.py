"""``--set quantize.weights.group=64``: one setting of a recipe, by its dotted name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from ditpress.errors import InputError
from ditpress.schema import suggest


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the recipe ``data`` (every default written out) with the overrides applied.

    A name starts with a section (``validation.samples``), a stage (``quantize.activations``) or, where a
    stage stands more than once, its place (``stages.0.alpha``). Values are YAML. A field of a group that the
    recipe leaves out (null) puts the group in, with its other defaults: ``quantize.low_rank.rank=32``.

    Raises:
        InputError: not of the form ``name=value``, or a name that does not exist, with the closest one.
    """
    changed = copy.deepcopy(data)
    for override in overrides:
        path, equals, text = override.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts):
            raise InputError(f'--set {override}: expected name=value, such as "quantize.weights.group=64"')
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {override}: the value is not valid YAML; put quotes around it") from None
        target, rest = _start(changed, parts, override)
        for part in rest[:-1]:
            inner = target.get(_known(part, target, override))
            if inner is None:
                inner = target[part] = _PutIn()
            if not isinstance(inner, dict):
                raise InputError(
                    f'--set {override}: "{part}" is a value and has no fields; leave out what follows'
                )
            target = inner
        name = _known(rest[-1], target, override)
        # null leaves an optional group out; where a group must stand, the recipe refuses it.
        if isinstance(target.get(name), dict) and not isinstance(value, dict | None):
            fields = ", ".join(target[name])
            raise InputError(
                f"--set {override}: {path} is a group of settings; name one of its fields: {fields}"
            )
        target[name] = value
    return changed


class _PutIn(dict[str, Any]):
    """A group that the recipe left out: only its schema knows the fields that are not set yet."""


def _start(data: dict[str, Any], parts: list[str], override: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in which the search begins, and the parts of the name still to go."""
    stages = [(kind, fields) for stage in data["stages"] for kind, fields in stage.items()]
    head = parts[0]
    if head == "stages":
        places = [str(index) for index in range(len(stages))]
        if len(parts) < 3 or parts[1] not in places:
            raise InputError(f"--set {override}: expected stages.N.field with N one of {', '.join(places)}")
        return stages[int(parts[1])][1], parts[2:]
    matching = [fields for kind, fields in stages if kind == head]
    if len(matching) > 1:
        raise InputError(
            f"--set {override}: the recipe has {len(matching)} stages {head}; write stages.N.field"
        )
    if matching:
        if len(parts) == 1:
            raise InputError(f"--set {override}: name a field of {head}: {', '.join(matching[0])}")
        return matching[0], parts[1:]
    sections = {name: item for name, item in data.items() if name != "stages"}
    if head not in sections:
        known = [*sections, *dict.fromkeys(kind for kind, _ in stages)]
        raise InputError(f'--set {override}: no setting "{head}"; {suggest(head, known)}')
    return data, parts


def _known(part: str, fields: dict[str, Any], override: str) -> str:
    if part not in fields and not isinstance(fields, _PutIn):
        raise InputError(f'--set {override}: no setting "{part}"; {suggest(part, fields)}')
    return part
