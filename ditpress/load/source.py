"""What the user calls MODEL, resolved to something that can be loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download

from ditpress.errors import InputError
from ditpress.load.hub import hub_errors
from ditpress.load.random_dit import architecture
from ditpress.load.zoo import zoo_path

Kind = Literal["zoo", "pipeline", "transformer", "run", "random", "hub"]

# Never read: all of them can run code when opened.
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
CONVERT = "load it where you trust it and write it with save_pretrained(folder, safe_serialization=True)"

# Tokenizers keep their vocabulary in json, txt or a sentencepiece .model.
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its kind, the text that named it, and the folder to load (None: none yet)."""

    kind: Kind
    spec: str
    path: Path | None


def resolve(model: str) -> Source:
    """Find out what ``model`` names; nothing is loaded or downloaded.

    Accepts ``zoo:NAME``, ``random:DiT-XL/2``, a run folder of ours, a diffusers pipeline folder, a folder
    with only a transformer, and a hub id ``owner/name``; an existing folder wins over a hub id.

    Raises:
        InputError: ``model`` is none of these, or a checkpoint that is not safetensors.
    """
    if not model:
        raise InputError(
            "MODEL is empty: expected zoo:NAME, random:DiT-XL/2, a folder or a hub id owner/name"
        )
    if model.startswith("zoo:"):
        return Source("zoo", model, zoo_path(model.removeprefix("zoo:")))
    if model.startswith("random:"):
        architecture(model.removeprefix("random:"))
        return Source("random", model, None)
    path = Path(model).expanduser()
    if path.is_dir():
        kind, folder = _folder_kind(path)
        return Source(kind, model, folder)
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{model}: only safetensors is read, a {path.suffix} file may run code; {CONVERT}")
    if path.is_file():
        raise InputError(
            f"{model}: is a file, expected a folder; give the one that holds config.json and the safetensors"
        )
    if _HUB_ID.fullmatch(model):
        return Source("hub", model, None)
    raise InputError(
        f"{model}: not found; expected zoo:NAME, random:DiT-XL/2, an existing folder or a hub id owner/name"
    )


def download(source: Source) -> Source:
    """Fetch the safetensors, JSON and tokenizer files of a hub source and give it its local folder.

    Raises InputError when the hub cannot be reached, or does not have or give away the repository.
    """
    with hub_errors(source.spec, "folder"):
        path = Path(snapshot_download(source.spec, allow_patterns=list(HUB_FILES)))
    _folder_kind(path)
    return Source("hub", source.spec, path)


def _folder_kind(folder: Path) -> tuple[Kind, Path]:
    """The kind of a local folder, and the folder in it to load."""
    if (folder / "recipe.yaml").is_file():
        if (folder / "model" / "model_index.json").is_file():
            return "run", folder / "model"
        raise InputError(f"{folder}: a run without a finished model/; finish it by running its recipe again")
    if (folder / "model_index.json").is_file():
        return "pipeline", folder
    if (folder / "config.json").is_file():
        return "transformer", folder
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
    if pickled:
        raise InputError(f"{folder}: only safetensors is read, found {pickled[0]}; {CONVERT}")
    if (folder / "transformer" / "config.json").is_file():
        raise InputError(f"{folder}: has no model_index.json; give {folder / 'transformer'} to load it alone")
    raise InputError(
        f"{folder}: no model in it; expected model_index.json (a pipeline) or config.json (a transformer)"
    )
