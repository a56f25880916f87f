"""The recipes that ship with the package. No heavy import: the command line lists them for its help."""

from __future__ import annotations

from importlib import resources

import yaml


def builtin_names() -> list[str]:
    """Names of the built-in recipes, sorted."""
    files = resources.files("ditpress.recipes").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml"))


def builtin_descriptions() -> dict[str, str]:
    """Description of every built-in recipe by name."""
    folder = resources.files("ditpress.recipes")
    texts = {name: folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8") for name in builtin_names()}
    return {name: str(yaml.safe_load(text)["description"]) for name, text in texts.items()}
