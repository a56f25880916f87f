"""Packages that can be called: ``ditpress.compress`` and ``ditpress.load`` are functions and packages.

Importing a submodule binds it as an attribute of its package, over any function of that name. So these two
packages can themselves be called; ``ditpress/__init__.py`` says with what.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_functions: dict[str, Callable[[], Callable[..., Any]]] = {}


class _CallablePackage(ModuleType):
    """A package that passes a call on to the function given to :func:`call_with`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _functions[self.__name__]()(*args, **kwargs)


def make_callable(name: str) -> None:
    """Let the package ``name``, which is being imported, be called."""
    sys.modules[name].__class__ = _CallablePackage


def call_with(name: str, find: Callable[[], Callable[..., Any]]) -> None:
    """A call of the package ``name`` calls the function that ``find()`` returns, looked up at the call."""
    _functions[name] = find
