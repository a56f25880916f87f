"""The functions ``ditpress.compress`` and ``ditpress.load`` bear the names of packages.

Importing a submodule binds it as an attribute of its package, over any function of that name. So these two
packages can themselves be called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that passes a call on to the public function of its name in ``ditpress.api``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self.__name__.rpartition(".")[2]
        return getattr(import_module("ditpress.api"), function)(*args, **kwargs)


def make_callable(name: str) -> None:
    """Let the package ``name``, which is being imported, be called."""
    sys.modules[name].__class__ = _CallablePackage
