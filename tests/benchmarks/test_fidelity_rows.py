"""The fidelity benchmark: rows of a tiny model, made and measured in this process."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_dit import tiny_pipeline
from torch import nn

from comparison.original import Conditions, Original
from comparison.process import RUN
from comparison.results import fid, sqnr
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.denoiser import load_denoiser
from ditpress.validate.size import size_of
from fidelity import cli, peers, worker
from fidelity.plain import plain_linear, scalar_codes, vector_codes
from fidelity.results import Results
from fidelity.rows import ORIGINAL, ROWS, Row, select

SAMPLES, STEPS = 4, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(num_attention_heads=4, attention_head_dim=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def conditions(model: Path) -> Conditions:
    return Conditions(str(model), SAMPLES, STEPS, 1)


@pytest.fixture(scope="module")
def original(conditions: Conditions, tmp_path_factory: pytest.TempPathFactory) -> Original:
    made = Original(tmp_path_factory.mktemp("original"))
    made.make(load_denoiser(conditions.model), conditions)
    return made


def row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


@pytest.fixture(scope="module")
def by_recipe(conditions, original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("w8a8")
    return folder, worker.run(row("w8a8"), conditions, folder, original, None)


def test_a_recipe_and_plain_rounding_in_its_storage(by_recipe, conditions, original, tmp_path):
    folder, entry = by_recipe
    plain = worker.run(row("rtn-w8a8"), conditions, tmp_path, original, folder / RUN)
    assert entry["engine"] == plain["engine"] == "onnx"
    blocks = load_denoiser(conditions.model).transformer.transformer_blocks
    factors = sum(block.ff.net[2].in_features for block in blocks)  # of smoothing at run time, float32
    assert plain["bytes"] == entry["bytes"] - 4 * factors
    assert entry["file_bytes"] == (folder / "run/onnx/transformer/model.onnx").stat().st_size
    assert entry["fidelity"]["samples"] == SAMPLES
    assert sqnr(entry) > 25
    assert sqnr(plain) > 20
    assert fid(entry) == entry["fidelity"]["compressed"]["fid_to_original"]
    assert entry["seconds"] > 0
    assert entry["peak_rss_bytes"] > 10_000_000


def test_the_row_of_the_original(conditions, tmp_path):
    entry = worker.run(ORIGINAL, conditions, tmp_path, Original(tmp_path), None)
    assert sqnr(entry) is None
    assert entry["fids"] == []  # no real images of this model
    size = size_of(*[load_denoiser(conditions.model).transformer] * 2)
    assert entry["bytes"] == size.original_bytes
    assert entry["effective_bits"] == pytest.approx(8 * size.original_bytes / size.parameters)


@pytest.mark.parametrize("algorithm", ["rtn", "hqq"])
def test_onnxruntime_quantizes_the_layers_of_the_recipes(algorithm, conditions, original, tmp_path):
    denoiser = load_denoiser(conditions.model)
    bits = peers.onnxruntime_nbits(denoiser, algorithm, 64, original.onnx, tmp_path)
    layers = peers.quantized_layers(denoiser)
    assert set(bits) == set(layers)
    assert not any("proj_out" in name or "embed" in name for name in bits)
    for name, linear in layers.items():
        rows, columns = linear.weight.shape
        blocks = columns // 64
        zeros = (
            8 * -(-blocks // 2) if algorithm == "rtn" else 32 * blocks
        )  # of 4 bits each, a row in whole bytes
        assert bits[name] == rows * (4 * columns + 32 * blocks + zeros)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sum(node.op_type == "MatMulNBits" for node in graph.node) == len(layers)
    entry = worker.run(row(f"ort-{algorithm}-64"), conditions, tmp_path / "row", original, None)
    assert sqnr(entry) > 10


@pytest.mark.parametrize(
    ("tool", "name"), [("bitsandbytes", "bnb-nf4"), ("torchao", "torchao-int8"), ("torchao", "torchao-intx4")]
)
def test_tools_without_onnx(tool, name, conditions, original, tmp_path):
    pytest.importorskip(tool, reason=f"{tool} comes with the extra bench")
    entry = worker.run(row(name), conditions, tmp_path, original, None)
    assert entry["engine"] == "torch"
    assert entry["file_bytes"] is None
    assert sqnr(entry) > (30 if "int8" in name else 10)
    denoiser = load_denoiser(conditions.model)
    layers = peers.quantized_layers(denoiser)
    codes = {layer: int(row(name).bits) * linear.weight.numel() for layer, linear in layers.items()}
    scales = sum(4 * linear.weight.numel() // 64 for linear in layers.values())  # float32, one for 64 at most
    assert 0 < entry["bytes"] - peers.stored_bytes(denoiser, codes) <= 1.25 * scales + 200 * len(layers)


def test_stored_bytes_counts_only_what_changed(conditions):
    denoiser = load_denoiser(conditions.model)
    name, linear = next(iter(peers.quantized_layers(denoiser).items()))
    before = peers.stored_bytes(denoiser, {})
    assert before == size_of(denoiser.transformer, denoiser.transformer).original_bytes
    each = 2 if torch.equal(linear.weight.half().float(), linear.weight) else 4
    assert peers.stored_bytes(denoiser, {name: 800}) == before - each * linear.weight.numel() + 100


# Scalar tables: every weight on the entry that trying all of them finds.
@pytest.mark.parametrize("name", ["int8", "int4", "fp4-e2m1", "nf4", "ternary"])
def test_plain_codes_are_the_nearest_entries(name):
    format = get_format(name)
    weight = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(0))
    scale, codes = scalar_codes(weight, format, torch.float32)
    table = format.codebook_tensor().flatten().double()
    largest = weight.abs().amax(dim=-1)
    if name == "ternary":
        assert torch.allclose(scale, weight.abs().mean(dim=-1))
    else:
        assert torch.allclose(scale * {"int8": 127, "int4": 7, "fp4-e2m1": 12, "nf4": 127}[name], largest)
    exact = weight.double() / scale.double()[..., None]
    error = (exact[..., None] - table).abs()
    mine = (exact - table[codes.long()]).abs()
    assert torch.allclose(mine, error.amin(dim=-1), atol=1e-6)


@pytest.mark.parametrize(("name", "levels"), [("vq-256x4", 4), ("vq-64x2", 8)])
def test_plain_vectors_are_plain_integers(name, levels):
    """Against rounding each weight by itself to the middle of one of ``levels`` equal steps."""
    linear = nn.Linear(32, 8, bias=False)
    nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(1))
    like = QuantizedLinear.empty(32, 8, name, 32, "none", bias=False)
    layer = plain_linear(linear, like, "layer")
    weight = linear.weight.detach().double().numpy()
    step = 2 * np.abs(weight).max(axis=1, keepdims=True) / (levels - 1)
    middle = (np.arange(levels) - (levels - 1) / 2) * step[..., None]
    nearest = np.abs(weight[..., None] - middle).argmin(axis=-1)
    expected = np.take_along_axis(
        np.broadcast_to(middle, (8, 1, levels)).repeat(32, 1), nearest[..., None], -1
    )
    np.testing.assert_allclose(layer.dequantize().numpy(), expected[..., 0], rtol=1e-5)
    scale, codes, codebook = vector_codes(linear.weight.detach()[:, None], get_format(name), torch.float32)
    assert codebook.shape == (levels ** get_format(name).vector_length, get_format(name).vector_length)
    assert len(codebook.unique(dim=0)) == len(codebook)
    assert scale.shape == (8, 1)
    assert codes.shape == (8, 1, 32 // get_format(name).vector_length)


def test_select():
    assert select([]) == list(ROWS)
    assert [r.name for r in select(["rtn-w4a8"])] == ["original", "w4a8", "rtn-w4a8"]
    assert [r.name for r in select(["bnb-*"])] == ["original", "bnb-nf4", "bnb-fp4"]
    with pytest.raises(ValueError, match="w5a5: no such row; known: original, w8a8"):
        select(["w5a5"])
    assert len({r.name for r in ROWS}) == len(ROWS)
    for one in ROWS:
        assert Row.from_data(json.loads(json.dumps(one.to_data()))) == one


@pytest.fixture
def in_process(monkeypatch):
    """Rows made here, not in a process of their own; the names of those that were."""
    made: list[str] = []

    def work(job):
        made.append(job["row"]["name"])
        folder = Path(job["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        if job["row"]["name"].startswith("torchao"):
            return "ImportError: no such kernel"
        result = {"row": job["row"], "like": job["like"], "code": job["code"]}
        (folder / "result.json").write_text(json.dumps(result))
        return None

    monkeypatch.setattr(cli, "_work", work)
    return made


def test_rows_are_measured_once_and_again_when_told(in_process, tmp_path):
    results, conditions = Results({}), {"model": "m"}
    assert cli.measure(row("w8a8"), conditions, tmp_path, results) is None
    assert cli.measure(row("w8a8"), conditions, tmp_path, results) is None
    assert in_process == ["w8a8"]
    assert cli.measure(row("w8a8"), conditions, tmp_path, results, fresh=True) is None
    assert in_process == ["w8a8", "w8a8"]
    assert cli.measure(row("w8a8"), {"model": "other"}, tmp_path, results) is None
    assert in_process == ["w8a8"] * 3


def test_plain_rounding_follows_its_recipe(in_process, tmp_path):
    results, conditions = Results({}), {"model": "m"}
    assert cli.measure(row("rtn-w8a8"), conditions, tmp_path, results) == "w8a8 was not measured"
    cli.measure(row("w8a8"), conditions, tmp_path, results)
    assert cli.measure(row("rtn-w8a8"), conditions, tmp_path, results) is None
    (done,) = tmp_path.glob("w8a8-*")
    assert results.get("rtn-w8a8")["like"] == str(done / "run")


def test_what_cannot_be_measured_says_why(in_process, tmp_path):
    results, conditions = Results({}), {"model": "m"}
    assert cli.measure(row("torchao-int4"), conditions, tmp_path, results) == "ImportError: no such kernel"
    unknown = Row("new", "recipe", recipe="no-such-recipe")
    assert cli.measure(unknown, conditions, tmp_path, results) == "no recipe no-such-recipe yet"
    other = Row("odd", "recipe", recipe="w8a8", overrides=("quantize.weigths.group=64",))
    assert "weigths" in cli.measure(other, conditions, tmp_path, results)
    without = Row("odd", "ablation", recipe="w8a8", without=("rotate",))
    assert (
        cli.measure(without, conditions, tmp_path, results) == "recipe w8a8 has no stage rotate to leave out"
    )
    same = Row("w8a8-same", "ablation", of="w8a8", recipe="w8a8", overrides=("smooth.alpha=search",))
    said = cli.measure(same, conditions, tmp_path, results)
    assert said == "the recipe itself: w8a8 is without it"
    assert set(results.missing) == {"torchao-int4", "new", "odd", "w8a8-same"}
    path = tmp_path / "results.json"
    results.save(path)
    assert set(Results.resume(path, {}).missing) == {"torchao-int4"}  # the others are no rows of the table
    assert Results.resume(path, {"samples": 5}).missing == {}


def test_copies_leave_the_model_as_it_was(conditions):
    """What a peer makes is a copy: the next row starts from the float model."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes comes with the extra bench")
    denoiser = load_denoiser(conditions.model)
    before = copy.deepcopy(denoiser.transformer.state_dict())
    peers.bitsandbytes_4bit(denoiser, "nf4")
    after = denoiser.transformer.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
