"""Files of the Hugging Face hub, and what to say where it does not give them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from ditpress.errors import InputError

PREFIX = "hf:"
_FILE = re.compile(r"hf:(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")


def local_file(spec: str | Path) -> Path:
    """The file of a path, or of ``hf:OWNER/NAME/FILE``, fetched once and kept in the hub's cache.

    ``hf:OWNER/NAME@REVISION/FILE`` takes a branch, tag or commit.

    Raises:
        InputError: a broken ``hf:`` name, or the hub cannot be reached or does not have or give the file.
    """
    name = str(spec)
    if not name.startswith(PREFIX):
        return Path(spec)
    found = _FILE.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: no file on the hub; expected hf:OWNER/NAME/FILE")
    with hub_errors(name, "file"):
        path = hf_hub_download(found["repo"], found["file"], revision=found["revision"])
    return Path(path)


@contextlib.contextmanager
def hub_errors(name: str, kind: str) -> Iterator[None]:
    """Errors of the hub inside the block as InputError; ``kind``: what else ``name`` could have been here."""
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{name}: neither a local {kind} nor a valid hub id; check the name") from error
    except GatedRepoError as error:
        raise InputError(f"{name}: gated on the hub; accept its terms and log in first") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name}: neither a local {kind} nor a hub repository; check the name") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: no such {kind}, and the hub cannot be reached; give a local {kind} or go online"
        ) from error
    except EntryNotFoundError as error:
        raise InputError(f"{name}: the repository is there, but not this file; check the name") from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"{name}: the download failed ({error}); try again".replace("\n", " ")) from error
