"""Strict settings: typed, frozen, no unknown key, and errors that say in one line what to write instead."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from ditpress.errors import InputError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of everything a recipe can say."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def suggest(word: str, known: Iterable[str]) -> str:
    """``did you mean "group"? known: format, group`` for an unknown ``word``."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}known: {', '.join(names) if names else 'none'}"


def parse(model: type[S], data: object, where: str) -> S:
    """``data`` as a ``model``; ``where`` names it in errors.

    Raises:
        InputError: an unknown or missing field, or a value of the wrong kind; names the field and the remedy.
    """
    if isinstance(data, model):
        return data
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise InputError(
            f"{where}: expected fields with values ({', '.join(model.model_fields)}), got {data!r}"
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(explain(error, model, where)) from None


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """The main problem of ``error`` in one line: the field, what was expected, what to do."""
    # A misspelt field also leaves the right one missing: the misspelling is what there is to say.
    problem = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    location = tuple(problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    field = _dotted(where, location)
    if problem["type"] == "extra_forbidden":
        parent = _dotted(where, location[:-1])
        name = str(location[-1])
        return f'{parent} has no field "{name}"; {suggest(name, _fields(model, location[:-1]))}'
    if problem["type"] == "missing":
        return f"{field} is missing; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{field}: {message[:1].lower()}{message[1:]}, got {problem['input']!r}"


def _dotted(where: str, location: Iterable[object]) -> str:
    return ".".join([where, *(str(part) for part in location)]) if where else ".".join(map(str, location))


def _fields(model: type[BaseModel], location: Iterable[object]) -> list[str]:
    """Names of the fields of the settings that lie at ``location`` inside ``model``."""
    current: type[BaseModel] = model
    for part in location:
        field = current.model_fields.get(str(part))
        inner = _settings_type(field.annotation) if field is not None else None
        if inner is None:
            break
        current = inner
    return list(current.model_fields)


def _settings_type(annotation: Any) -> type[BaseModel] | None:
    """The settings class in an annotation such as ``WeightSpec`` or ``WeightSpec | None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for arg in get_args(annotation) if (found := _settings_type(arg))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
