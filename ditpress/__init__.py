"""ditpress: make pretrained Diffusion Transformers small and fast after training.

```python
result = ditpress.compress("zoo:mnist-dit", recipe="w4a8", out="out")
result.report
pipeline = ditpress.load("out")
```
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ditpress.callable_package import call_with
from ditpress.version import VERSION as __version__

if TYPE_CHECKING:
    from ditpress.export.session import onnx_library_path, onnx_session
    from ditpress.recipes.recipe import Recipe, load_recipe
    from ditpress.recipes.result import Result

# torch, diffusers and ONNX Runtime take seconds to import: each name brings its own when it is first used.
_HOMES = {
    "Recipe": "ditpress.recipes.recipe",
    "Result": "ditpress.recipes.result",
    "load_recipe": "ditpress.recipes.recipe",
    "onnx_library_path": "ditpress.export.session",
    "onnx_session": "ditpress.export.session",
}

__all__ = [
    "Recipe",
    "Result",
    "__version__",
    "compress",
    "load",
    "load_recipe",
    "onnx_library_path",
    "onnx_session",
]


def _public(name: str) -> Any:
    """A function of ``ditpress.api``."""
    return getattr(import_module("ditpress.api"), name)


call_with("ditpress.compress", partial(_public, "compress"))
call_with("ditpress.load", partial(_public, "load"))


def __getattr__(name: str) -> Any:
    if name in ("compress", "load"):  # packages that can be called, see ditpress/callable_package.py
        return import_module(f"ditpress.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ditpress' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
