"""The cache of reference rows: the same bits with and without it, and nothing broken is ever believed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ditpress.validate import reference_rows as module
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.metrics.cmmd import kernel_means
from ditpress.validate.reference import Reference, load_reference
from ditpress.validate.reference_rows import cache_folder, reference_rows
from ditpress.validate.table import Networks, Table, describe, join
from ditpress.validate.validation import validate

SHAPE = (1, 28, 28)


class Passes:
    """Counts the batches that go through the networks."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images: torch.Tensor, networks: Networks) -> Table:
        self.count += 1
        return describe(images, networks)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, in use; not made yet."""
    monkeypatch.setenv("DITPRESS_CACHE", str(tmp_path / "cache"))
    module._warn.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    passes = Passes()
    monkeypatch.setattr(module, "describe", passes)
    return passes


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    path = tmp_path_factory.mktemp("reference") / "digits.npz"
    np.savez(path, images=images)
    return path


@pytest.fixture(scope="module")
def reference(digits: Path) -> Reference:
    return load_reference(digits)


@pytest.fixture(scope="module")
def networks(extractor: FeatureExtractor) -> Networks:
    return Networks(extractor)


@pytest.fixture(scope="module")
def truth(reference: Reference, networks: Networks) -> Table:
    """The rows by the network and by CMMD's kernel, without what is tested here."""
    rows = join([describe(batch, networks) for batch in reference.batches(SHAPE)])
    return rows | {"kernel_means": kernel_means(rows["features"])}


def entry_of(cache: Path) -> Path:
    (entry,) = (cache / "reference").iterdir()
    return entry


def same(a: Table, b: Table) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_the_network_runs_once_and_the_bits_are_its_own(
    cache: Path, passes: Passes, reference: Reference, networks: Networks, truth: Table
) -> None:
    assert same(reference_rows(reference, networks, SHAPE), truth)
    assert passes.count == 2
    found = reference_rows(reference, networks, SHAPE)
    assert passes.count == 2
    assert same(found, truth)
    assert all(rows.data_ptr() % 64 == 0 for rows in found.values())


def test_all_figures_are_the_same_with_and_without(
    cache: Path, extractor: FeatureExtractor, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))

    def figures() -> str:
        fidelity = validate(
            samples,
            samples.flip(3),
            extractor=extractor,
            steps=1,
            guidance=None,
            captions=["one", "a one"] * 10,
            reference=reference,
        )
        assert fidelity.compressed.fid is not None
        return fidelity.model_dump_json()  # floats to the last digit

    empty, filled = figures(), figures()
    monkeypatch.setenv("DITPRESS_CACHE", "off")
    assert empty == filled == figures()


def damaged(data: bytes) -> dict[str, bytes]:
    flipped = {f"bit at {at}": at for at in (0, 64, 65, 80, len(data) // 2, len(data) - 1)}
    return {
        "empty": b"",
        "cut in its first line": data[:30],
        "cut": data[:-1],
        "longer": data + b"\0",
        "other": b"\x80\x04]\x94.",
        "checksum of another key": data.replace(data[:64], module._checksum("0" * 64, data[65:])[:64]),
        **{name: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for name, at in flipped.items()},
    }


def test_a_broken_entry_is_made_again(
    cache: Path,
    passes: Passes,
    reference: Reference,
    networks: Networks,
    truth: Table,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reference_rows(reference, networks, SHAPE)
    entry = entry_of(cache)
    whole = entry.read_bytes()
    for name, data in damaged(whole).items():
        entry.write_bytes(data)
        before = passes.count
        caplog.clear()
        assert same(reference_rows(reference, networks, SHAPE), truth), name
        assert passes.count == before + 2, name
        assert "checksum" in caplog.text, name
        assert entry.read_bytes() == whole, name


def test_an_entry_under_the_name_of_another_is_not_believed(
    cache: Path, passes: Passes, reference: Reference, networks: Networks, tmp_path: Path
) -> None:
    reference_rows(reference, networks, SHAPE)
    mine = entry_of(cache)
    np.savez(tmp_path / "black.npz", images=np.zeros((300, 28, 28), np.uint8))
    black = load_reference(tmp_path / "black.npz")
    expected = reference_rows(black, networks, SHAPE)
    (other,) = set((cache / "reference").iterdir()) - {mine}
    shutil.copy(mine, other)
    assert same(reference_rows(black, networks, SHAPE), expected)
    assert passes.count == 6


def test_whatever_decides_the_rows_has_an_entry_of_its_own(
    cache: Path,
    digits: Path,
    clip_folder: Path,
    reference: Reference,
    networks: Networks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [module._key(reference, networks, SHAPE)]
    assert module._key(load_reference(digits), Networks(FeatureExtractor(clip_folder)), SHAPE) == keys[0]
    keys.append(module._key(reference, networks, (3, 28, 28)))
    with np.load(digits) as arrays:
        np.savez(tmp_path / "other.npz", images=np.ascontiguousarray(arrays["images"][::-1]))
    keys.append(module._key(load_reference(tmp_path / "other.npz"), networks, SHAPE))
    # Other preparation of the images, the same weights: sha256 of the extractor does not tell.
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (file,) = folder.glob("*processor*.json")
    settings = json.loads(file.read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.1, 0.1]
    file.write_text(json.dumps(settings))
    changed = FeatureExtractor(folder)
    assert changed.sha256 == networks.clip.sha256
    keys.append(module._key(reference, Networks(changed), SHAPE))
    images = torch.rand(2, *SHAPE)
    assert not torch.equal(changed.features(images), networks.clip.features(images))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1000)
        keys.append(module._key(reference, networks, SHAPE))
    with monkeypatch.context() as patch:
        patch.setattr(module, "version", lambda name: "0.0")
        keys.append(module._key(reference, networks, SHAPE))
    with monkeypatch.context() as patch:
        patch.setattr(module, "CODE", module.CODE[1:])
        keys.append(module._key(reference, networks, SHAPE))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("place", ["file", "below a file", "folder as entry"])
def test_a_place_that_cannot_be_used_costs_a_warning_and_no_run(
    cache: Path,
    passes: Passes,
    reference: Reference,
    networks: Networks,
    truth: Table,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    if place == "folder as entry":
        (cache / "reference" / f"{module._key(reference, networks, SHAPE)}.rows").mkdir(parents=True)
    else:
        cache.write_text("in the way")
    if place == "below a file":
        monkeypatch.setenv("DITPRESS_CACHE", str(cache / "deep" / "er"))
    for _ in range(3):
        assert same(reference_rows(reference, networks, SHAPE), truth)
    assert passes.count == 6
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == len(set(warnings)) > 0
    assert "DITPRESS_CACHE" in warnings[-1]


def test_switched_off_nothing_is_written_or_read(
    cache: Path, passes: Passes, reference: Reference, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference_rows(reference, networks, SHAPE)
    files = sorted(cache.rglob("*"))
    monkeypatch.setenv("DITPRESS_CACHE", "off")
    monkeypatch.chdir(cache)
    reference_rows(reference, networks, SHAPE)
    assert passes.count == 4
    assert sorted(cache.rglob("*")) == files


def test_many_at_once_leave_one_whole_entry(
    cache: Path, reference: Reference, networks: Networks, truth: Table, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: reference_rows(reference, networks, SHAPE), range(16)))
    assert all(same(table, truth) for table in found)
    assert entry_of(cache).suffix == ".rows"
    assert "checksum" not in caplog.text  # nobody saw a part of what another one wrote


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for cache, shared, expected in (
        ("/else/where", "/shared", Path("/else/where")),
        ("~/mine", "/shared", tmp_path / "mine"),
        ("", "/shared", Path("/shared/ditpress")),
        ("", "relative", tmp_path / ".cache" / "ditpress"),
        ("", "", tmp_path / ".cache" / "ditpress"),
        ("off", "/shared", None),
    ):
        monkeypatch.setenv("DITPRESS_CACHE", cache)
        monkeypatch.setenv("XDG_CACHE_HOME", shared)
        assert cache_folder() == expected


def test_tests_leave_the_cache_of_the_user_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = cache_folder()
    assert folder is not None
    assert str(folder) == os.environ["DITPRESS_CACHE"]
    assert tmp_path_factory.getbasetemp().parent in folder.parents
