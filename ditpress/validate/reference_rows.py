"""The rows of the real images, kept between runs in the user's cache folder.

Reference and networks rarely change, and ten thousand images on their way through them take longer than most
other parts of a measurement. An entry is one file, ``reference/KEY.rows``: a SHA-256, a line feed, and the
table in safetensors. The key is a hash of all that decides the bits of the rows, so an entry never goes
stale. The checksum covers key and content, and nothing of a file is parsed before it agrees. Entries may be
deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load, save

from ditpress.errors import InputError
from ditpress.files import sha256_file, write_atomic
from ditpress.progress import track
from ditpress.validate.metrics.cmmd import kernel_means
from ditpress.validate.reference import Reference
from ditpress.validate.table import Networks, Table, clip_features, describe, join

VARIABLE, OFF = "DITPRESS_CACHE", "off"
LINE = 65  # bytes: a SHA-256 in hexadecimal and a line feed
# What turns images into rows. A version that is to be raised by hand is forgotten some day, code is not.
CODE = (
    *("reference_rows.py", "reference.py", "table.py", "extractor.py", "inception.py"),
    *("metrics/cmmd.py", "metrics/mmd.py"),
)
LIBRARIES = ("torch", "numpy", "pillow")  # those of the networks are among their settings

log = logging.getLogger(__name__)


def reference_rows(reference: Reference, networks: Networks, shape: tuple[int, int, int]) -> Table:
    """The rows of all real images (:mod:`ditpress.validate.table`), the same bits from the cache or not.

    A broken entry, and a folder that cannot be used, cost the time that the cache would have saved and a
    logged warning, never a run.

    Args:
        shape: (C, H, W) of the samples; the images are brought to it.
    """
    folder = cache_folder()
    if folder is None:
        return _compute(reference, networks, shape)
    key = _key(reference, networks, shape)
    entry = folder / "reference" / f"{key}.rows"
    table = _read(entry, key)
    if table is None:
        table = _compute(reference, networks, shape)
        _write(entry, key, table)
    return table


def cache_folder() -> Path | None:
    """``$DITPRESS_CACHE``, or ``ditpress`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``; None: there is none."""
    chosen, shared = os.environ.get(VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    if chosen == OFF:
        return None
    try:
        if chosen:
            return Path(chosen).expanduser()
        if os.path.isabs(shared):  # the XDG specification: a relative one is ignored
            return Path(shared) / "ditpress"
        return Path.home() / ".cache" / "ditpress"
    except RuntimeError as error:  # no home
        _warn(f"no cache of reference features ({error}); set {VARIABLE} to a folder or to {OFF}")
        return None


def _compute(reference: Reference, networks: Networks, shape: tuple[int, int, int]) -> Table:
    batches = track(reference.batches(shape), "features of the reference", reference.batch_count())
    table = join([describe(batch, networks) for batch in batches])
    return table | {"kernel_means": kernel_means(clip_features(table))}


def _key(reference: Reference, networks: Networks, shape: tuple[int, int, int]) -> str:
    both = [network for network in (networks.clip, networks.inception) if network is not None]
    facts = {
        "reference": [reference.sha256, reference.count],
        "shape": shape,
        "networks": [[network.sha256, network.settings] for network in both],
        "code": [sha256_file(Path(__file__).parent / name) for name in CODE],
        "libraries": [version(name) for name in LIBRARIES],
        # Sums in another order, or of shorter factors, round to other bits.
        "arithmetic": [torch.get_num_threads(), torch.get_float32_matmul_precision()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(entry: Path, key: str) -> Table | None:
    try:
        data = entry.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _warn(f"{entry}: cannot be read ({error.strerror}); the reference is measured again")
        return None
    if data[:LINE] != _checksum(key, data[LINE:]):
        log.warning("%s: broken, its checksum does not agree; the reference is measured again", entry)
        return None
    # A fresh tensor lies on a boundary that one inside of bytes may miss, and products may differ with it.
    return {name: rows.clone() for name, rows in load(data[LINE:]).items()}


def _write(entry: Path, key: str, table: Table) -> None:
    content = save({name: rows.contiguous() for name, rows in table.items()})
    try:
        write_atomic(entry, _checksum(key, content) + content)
    except (InputError, OSError) as error:
        _warn(f"no cache of reference features ({error}); or set {VARIABLE} to another folder or to {OFF}")


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).hexdigest().encode() + b"\n"


@functools.cache
def _warn(text: str) -> None:
    """Log it once."""
    log.warning(text)
