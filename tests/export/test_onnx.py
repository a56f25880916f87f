"""The exported file against PyTorch, and what is and is not in it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from export_models import make_quantized
from onnx.external_data_helper import uses_external_data

from ditpress.errors import InputError, StageError
from ditpress.export import onnx as exporter
from ditpress.export.fixes import local_folders
from ditpress.export.inputs import Signature
from ditpress.export.onnx import export_transformer
from ditpress.export.parity import cases, compare
from ditpress.export.session import onnx_library_path, onnx_session

LIMIT = 1e-4  # of the output's range
LIBRARIES = [False] + ([True] if onnx_library_path() is not None else [])


def operators(path):
    return [(node.domain, node.op_type) for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.mark.parametrize(
    ("format", "group", "activation", "target", "kind"),
    [
        ("int4", 32, "int8", "ditpress", "QLinear4A8"),
        ("int8", None, "int8", "ditpress", "QLinear8A8"),
        ("nf4", 32, "int8", "ditpress", "QLinear4A8"),
        ("int4", 16, "none", "ditpress", "QLinear4"),
        ("int4", 32, "int8", "portable", None),
        ("nf4", 32, "int8", "portable", None),
    ],
)
def test_computes_what_torch_computes(exported, calls, format, group, activation, target, kind):
    path, model = exported(format, group, activation, target)
    for library in LIBRARIES:
        parity = compare(onnx_session(path, library=library), cases(model, calls, (1, 2, 5)))
        assert parity.relative <= LIMIT
        assert parity.psnr > 90
    ours = {name for domain, name in operators(path) if domain == "ditpress"}
    assert ours == ({kind, "QLinear8"} if kind else set())
    domains = {domain for domain, _ in operators(path)}
    assert domains <= {"", "ditpress", "com.microsoft"}


def test_plain_onnxruntime_runs_the_file(exported, calls, tmp_path):
    """In a process that never imports ditpress."""
    path, model = exported()
    signature = Signature.of(calls[0])
    arguments = signature.arguments(calls[0], batch=3)
    np.savez(tmp_path / "in.npz", **{name: tensor.numpy() for name, tensor in arguments.items()})
    script = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "numpy.save(sys.argv[3], session.run(None, dict(numpy.load(sys.argv[2])))[0])\n"
        "assert not any(name.startswith('ditpress') for name in sys.modules)\n"
    )
    arguments_of = [str(path), str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-P", "-c", script, *arguments_of], check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = model(**arguments).sample
    difference = torch.from_numpy(np.load(tmp_path / "out.npy")) - expected
    assert difference.abs().max() <= LIMIT * (expected.max() - expected.min())


def test_batch_is_dynamic_and_named(exported):
    path, _ = exported("float")
    graph = onnx.load(path).graph
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert dims == {
        "hidden_states": ["batch", 1, 8, 8],
        "timestep": ["batch"],
        "class_labels": ["batch"],
        "sample": ["batch", 1, 8, 8],
    }
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    assert types["timestep"] == types["class_labels"] == onnx.TensorProto.INT64


@pytest.mark.parametrize("tied", [True, False])
def test_shared_embedders_are_stored_and_computed_once(dit, calls, tmp_path, tied):
    """Tied modules, and equal copies of them: as many bytes and Gather nodes as one block has."""
    first = dit.transformer_blocks[0].norm1.emb
    for block in dit.transformer_blocks[1:]:
        if tied:
            block.norm1.emb = first
        else:
            block.norm1.emb.load_state_dict(first.state_dict())
    path, _ = export_transformer(dit, tmp_path / "transformer", calls)
    stored = onnx.load(path).graph.initializer
    table = first.class_embedder.embedding_table.weight
    assert sum(list(tensor.dims) == list(table.shape) for tensor in stored) == 1
    parameters = {
        name: p for name, p in dit.named_parameters() if not name.startswith("transformer_blocks.1.norm1.emb")
    }
    buffers = sum(b.numel() * 4 for b in dit.buffers())
    wanted = sum(p.numel() * p.element_size() for p in parameters.values()) + buffers
    held = sum(len(tensor.raw_data) for tensor in stored)
    assert wanted <= held < wanted + 4096
    assert [name for _, name in operators(path)].count("Gather") == 1
    assert [name for _, name in operators(path)].count("Sin") == 1


def test_different_embedders_stay_apart(exported):
    path, model = exported("float")
    table = model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    stored = onnx.load(path).graph.initializer
    assert sum(list(tensor.dims) == list(table.shape) for tensor in stored) == 2


@pytest.mark.parametrize("target", ["ditpress", "portable"])
def test_nothing_of_this_machine_is_in_the_file(exported, target):
    path, _ = exported(target=target)
    content = path.read_bytes() + (path.parent / "config.json").read_bytes()
    for text in (*local_folders(), str(path.parent.parent), "pkg.torch", "pkg.onnxscript", ".py"):
        assert text.encode() not in content, text
    assert onnx.load(path).producer_name == "pytorch"


def test_external_data_above_the_threshold(calls, tmp_path):
    model = make_quantized().train()
    path, _ = export_transformer(model, tmp_path / "transformer", calls, external_data_bytes=1000, fuse=False)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "config.json",
        "model.onnx",
        "model.onnx.data",
    ]
    stored = onnx.load(path, load_external_data=False).graph.initializer
    codes = [tensor for tensor in stored if tensor.name.endswith("to_q.codes")]
    assert codes
    assert all(uses_external_data(tensor) for tensor in codes)
    assert model.training  # as it was before
    parity = compare(onnx_session(path), cases(model.eval(), calls))  # after the folder was moved
    assert parity.relative <= LIMIT


def test_initialisers_are_the_buffers(calls):
    """No copy of the weights is made on the way to the file."""
    model = make_quantized()
    graph = exporter.build_model(model, Signature.of(calls[0]), calls[0]).graph
    buffer = model.transformer_blocks[0].attn1.to_q.codes
    array = graph.initializers["transformer.transformer_blocks.0.attn1.to_q.codes"].const_value.numpy()
    assert array.ctypes.data == buffer.data_ptr()


def test_config_is_written_for_the_reader(exported):
    path, model = exported()
    assert {"_name_or_path", "quantization_config"} <= set(model.config)
    config = json.loads((path.parent / "config.json").read_text())
    assert config["_class_name"] == "DiTTransformer2DModel"
    assert config["num_embeds_ada_norm"] == 10
    assert not {"_name_or_path", "quantization_config"} & set(config)


def test_failed_parity_leaves_the_old_folder(dit, calls, tmp_path, monkeypatch):
    def damaged(model):
        for name, value in model.graph.initializers.items():
            if name.endswith("proj_out_2.bias"):
                value.const_value = exporter.ir.tensor(value.const_value.numpy() + 0.1, name=name)

    monkeypatch.setattr(exporter, "repair", damaged)
    target = tmp_path / "transformer"
    target.mkdir()
    (target / "model.onnx").write_bytes(b"the old one")
    with pytest.raises(StageError, match="differs from PyTorch"):
        export_transformer(dit, target, calls)
    assert [entry.name for entry in tmp_path.iterdir()] == ["transformer"]
    assert (target / "model.onnx").read_bytes() == b"the old one"


def test_nan_is_no_parity(dit, calls, tmp_path):
    dit.proj_out_2.bias.data.fill_(float("nan"))
    with pytest.raises(StageError):
        export_transformer(dit, tmp_path / "transformer", calls)
    assert list(tmp_path.iterdir()) == []


def test_bad_calls(dit, calls, tmp_path):
    with pytest.raises(InputError, match="no recorded calls"):
        export_transformer(dit, tmp_path / "a", [])
    with pytest.raises(InputError, match="hidden_states"):
        export_transformer(dit, tmp_path / "a", [{"timestep": calls[0]["timestep"]}])
    with pytest.raises(InputError, match="list"):
        export_transformer(dit, tmp_path / "a", [{**calls[0], "control": [torch.zeros(1)]}])
    with pytest.raises(InputError, match="target"):
        export_transformer(dit, tmp_path / "a", calls, target="tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_session_of_nothing(tmp_path):
    with pytest.raises(InputError, match=r"no ONNX model"):
        onnx_session(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot load"):
        onnx_session(tmp_path)
