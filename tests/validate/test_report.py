import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ditpress.errors import InputError
from ditpress.validate.report import Fidelity, Report, load_report, parse_report

EXAMPLE: dict[str, Any] = {
    "schema": 1,
    "recipe": "w4a8",
    "model": "zoo:mnist-dit",
    "seed": 3,
    "environment": {
        "python": "3.11.9",
        "platform": "Linux",
        "torch": "2.13.0",
        "diffusers": "0.42.1",
        "onnxruntime": "1.31.1",
        "cpu": "a processor",
        "isa": "avx2",
        "threads": 2,
    },
    "size": {
        "parameters": 1000,
        "original_bytes": 2000,
        "compressed_bytes": 620,
        "onnx_bytes": 700,
        "effective_bits": 4.96,
        "layers": {"transformer_blocks.0.attn1.to_q": "int4", "proj_out_2": "fp16"},
    },
    "fidelity": {
        "samples": 64,
        "first_seed": 1003,
        "steps": 20,
        "guidance": 4.0,
        "kid_subset_size": 64,
        "extractor": {"name": "mnist-clip", "sha256": "ab" * 32, "num_features": 64},
        "reference": {"name": "mnist-test", "sha256": "cd" * 32, "count": 10000},
        "original": {
            "fid": 2.125,
            "kid": 0.0015,
            "clip": 31.25,
            "sfid": 3.5,
            "cmmd": 0.5,
            "precision": 0.75,
            "recall": 0.5,
            "inception_score": 8.5,
        },
        "compressed": {
            "fid": 2.375,
            "kid": 0.00175,
            "clip": 31.0,
            "sfid": 3.625,
            "cmmd": 0.625,
            "precision": 0.7,
            "recall": 0.45,
            "inception_score": 8.25,
            "fid_to_original": 0.1875,
            "kid_to_original": -0.00025,
        },
        "paired": {"psnr": 27.31, "ssim": 0.9731, "lpips": 0.0213, "output_sqnr_db": 22.72},
        "warnings": ["a <warning> about samples"],
        "inception": {"name": "weights", "sha256": "ef" * 32, "num_features": 2048},
        "lpips_network": {"name": "alex weights", "sha256": "12" * 32, "num_features": 1152},
        "intervals": {"paired.psnr": {"low": 26.0, "high": 28.62, "standard_error": 0.67}},
    },
    "parity": {
        "onnx_vs_torch_max_abs": 2.1e-5,
        "onnx_vs_torch_psnr": 71.2,
        "onnx_vs_torch_relative": 4.7e-6,
        "pieces_relative": 1.3e-6,
        "fusion_relative": 0.0,
    },
    "speed": {
        "hardware": "a processor",
        "threads": 2,
        "original_ms": 84.2,
        "compressed_ms": 31.4,
        "speedup": 2.68,
    },
    "stages": [{"name": "quantize", "seconds": 6.4, "peak_rss_bytes": 830000000}],
    "details": {
        "layers": [
            {
                "name": "proj_out_2",
                "format": "int4",
                "original_bytes": 64.0,
                "compressed_bytes": 16.0,
                "weight_error": 0.125,
                "output_sqnr_db": 19.5,
                "timesteps": [{"timestep": 999.0, "sqnr_db": 18.25}],
            }
        ],
        "timesteps": [{"timestep": 999.0, "sqnr_db": 21.5}],
    },
}


def example() -> dict[str, Any]:
    return copy.deepcopy(EXAMPLE)


def paths(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of every object in the example, but not the free names of layers."""
    found: list[tuple[Any, ...]] = []
    items: list[Any] = list(data.items()) if isinstance(data, dict) else list(enumerate(data))
    for key, value in items:
        if isinstance(data, dict) and prefix != ("size", "layers"):
            found.append((*prefix, key))
        if isinstance(value, dict | list):
            found += paths(value, (*prefix, key))
    return found


FIELDS = paths(EXAMPLE)
LATER = {
    "sfid",
    "cmmd",
    "precision",
    "recall",
    "inception_score",
    "inception",
    "lpips_network",
    "intervals",
    "details",
}


def test_round_trip_keeps_every_field_and_its_order(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.json"
    report = parse_report(example())
    report.save(path)
    assert json.loads(path.read_text()) == EXAMPLE
    assert list(json.loads(path.read_text())) == list(EXAMPLE)
    assert load_report(path) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]  # no temporary file stays


LAYER_TIMESTEPS = ("details", "layers", 0, "timesteps")
REQUIRED = [
    field
    for field in FIELDS
    if field[-1] not in LATER and field[-2:-1] != ("intervals",) and field != LAYER_TIMESTEPS
]


def test_layers_from_before_their_timesteps_are_read() -> None:
    data = example()
    del data["details"]["layers"][0]["timesteps"]
    report = parse_report(data)
    assert report.details is not None
    assert report.details.layers[0].timesteps == []


@pytest.mark.parametrize("field", REQUIRED, ids=lambda field: ".".join(map(str, field)))
def test_every_field_must_be_present(field: tuple[Any, ...]) -> None:
    data = example()
    parent: Any = data
    for key in field[:-1]:
        parent = parent[key]
    del parent[field[-1]]
    with pytest.raises(InputError, match="schema" if field == ("schema",) else "Field required"):
        parse_report(data)


def test_a_report_from_before_the_later_fields_is_read() -> None:
    def without(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: without(value) for key, value in data.items() if key not in LATER}
        return data

    report = parse_report(without(example()))
    assert (report.fidelity.compressed.sfid, report.fidelity.intervals, report.details) == (None, {}, None)
    assert report.fidelity.compressed.fid == EXAMPLE["fidelity"]["compressed"]["fid"]


@pytest.mark.parametrize("where", [(), ("size",), ("fidelity", "compressed"), ("stages", 0)])
def test_an_unknown_field_is_refused_by_name(where: tuple[Any, ...]) -> None:
    data = example()
    parent: Any = data
    for key in where:
        parent = parent[key]
    parent["fidd"] = 1
    with pytest.raises(InputError, match=r"fidd: Extra inputs are not permitted"):
        parse_report(data)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_schema_version_is_refused(version: object) -> None:
    with pytest.raises(InputError, match=r"schema .* reads schema 1"):
        parse_report(example() | {"schema": version})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_are_finite(value: float) -> None:
    data = example()
    data["fidelity"]["paired"]["psnr"] = value
    with pytest.raises(InputError, match=r"fidelity\.paired\.psnr"):
        parse_report(data)


def test_a_run_without_samples_has_nulls_and_its_sqnr() -> None:
    fidelity = Fidelity.without_samples(output_sqnr_db=31.5)
    assert fidelity.samples == 0
    assert fidelity.paired.output_sqnr_db == 31.5
    data = example() | {"fidelity": fidelity.model_dump()}
    assert parse_report(data).fidelity == fidelity
    assert data["fidelity"]["compressed"]["fid"] is None


def test_a_report_cannot_be_changed() -> None:
    report = parse_report(example())
    with pytest.raises(ValidationError):
        report.seed = 4


def test_files_that_are_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"schema": 1,')
    with pytest.raises(InputError, match="not readable as JSON"):
        load_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(InputError, match="expected an object"):
        load_report(tmp_path / "report.json")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report: Report = parse_report(example())
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ditpress.files.os.fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        report.save(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
