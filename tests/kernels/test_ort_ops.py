"""The ONNX Runtime ops against the torch op, through models made by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from qlinear_cases import Case, make_case

import ditpress.kernels.qlinear  # noqa: F401  (declares torch.ops.ditpress.qlinear)
from ditpress.kernels import cpu
from ditpress.kernels.reference import qlinear_reference

pytestmark = [
    pytest.mark.skipif(cpu.library_path() is None, reason="the C++ kernels are not built"),
    pytest.mark.skipif(
        cpu.library_path() is not None and cpu.isa() in ("reference", "portable"),
        reason="no op is registered",
    ),
]

CODINGS = {16: "QLinear4", 48: "QLinear4M", 256: "QLinear8"}  # by the length of the codebook
SUFFIXES = {"int8": "A8", "none": "", "int4": "A4", "uint4": "U4", "fp4-e2m1": "F4", "fp8-e4m3": "F8"}


def weights_of(case: Case) -> dict[str, np.ndarray]:
    """The inputs behind x."""
    assert case.bias is not None
    tensors = {"codes": case.codes, "scale": case.scale, "codebook": case.codebook.view(-1)}
    tensors |= {"bias": case.bias} | ({} if case.table is None else {"table": case.table})
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def build(case: Case, activation: str, constant: bool = True, **attributes: Any) -> onnx.ModelProto:
    """One QLinear node with its weight as initialisers or as graph inputs."""
    k, n = case.x.shape[-1], case.codes.shape[0]
    values = weights_of(case)
    settings = {"N": n, "K": k, "group_size": k // case.scale.shape[1]} | attributes
    node = helper.make_node(
        CODINGS[case.codebook.shape[0]] + SUFFIXES[activation],
        ["x", *values],
        ["y"],
        name="fc1",
        domain="ditpress",
        **settings,
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "features"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, n])
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    inputs = [helper.make_tensor_value_info(w.name, w.data_type, [None] * len(w.dims)) for w in weights]
    graph = helper.make_graph(
        [node], "g", [x] if constant else [x, *inputs], [y], initializer=weights if constant else []
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ditpress", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(model: onnx.ModelProto | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(cpu.library_path()))
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def feeds(case: Case, rows: int, constant: bool) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    x = case.x[: 3 * rows].view(rows, 3, case.x.shape[-1])
    result = {"x": x.numpy()}
    return result if constant else result | weights_of(case), x


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("activation", list(SUFFIXES))
@pytest.mark.parametrize(
    ("name", "group", "groups"),
    [("int4", 32, 2), ("nf4", 33, 1), ("fp4", 32, 3), ("int8", 48, 1), ("int8", 16, 3)],
)
def test_same_bits_as_the_torch_op(
    name: str, group: int, groups: int, activation: str, half: bool, constant: bool
) -> None:
    case = make_case(name, 21, 70, group, groups, half=half)
    runner = session(build(case, activation, constant))
    for rows in (1, 7, 0):
        inputs, x = feeds(case, rows, constant)
        (y,) = runner.run(None, inputs)
        expected = torch.ops.ditpress.qlinear(x, *case.all_arguments(activation)[1:])
        assert y.shape == (rows, 3, 70)
        assert np.array_equal(y, expected.numpy())
    if activation != "none":
        assert np.array_equal(y, qlinear_reference(x, *case.all_arguments(activation)[1:]).numpy())


def test_threads_do_not_change_a_bit() -> None:
    case = make_case("int4", 30, 200, 32, 2, half=True)
    model = build(case, "int8")
    inputs, _ = feeds(case, 10, True)
    one, two = (session(model, threads).run(None, inputs)[0] for threads in (1, 2))
    assert np.array_equal(one, two)


def test_inferred_shape_keeps_the_batch_symbolic() -> None:
    case = make_case("int4", 3, 70, 32, 1)
    model = build(case, "int8")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert session(model).get_outputs()[0].shape == ["batch", 3, 70]


def test_weights_in_external_data(tmp_path: Path) -> None:
    """Weights mapped from a file: repacked at load, their pages dropped, the file as it was."""
    case = make_case("int4", 6, 512, 128, 8, half=True)
    path = tmp_path / "model.onnx"
    onnx.save(
        build(case, "int8"), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    before = (tmp_path / "model.onnx.data").read_bytes()
    inputs, x = feeds(case, 2, True)
    expected = qlinear_reference(x, *case.arguments("int8")[1:]).numpy()
    runner = session(path)
    maps = Path("/proc/self/smaps")
    if maps.exists():  # what is left of the file in memory is less than the codes
        areas = maps.read_text().split("VmFlags:")
        sizes = [re.search(r"^Rss: +(\d+) kB", area, re.M) for area in areas if str(path) + ".data" in area]
        assert sizes
        assert sum(int(size.group(1)) for size in sizes if size) * 1024 < case.codes.numel() // 2
    assert np.array_equal(runner.run(None, inputs)[0], expected)
    assert np.array_equal(session(path).run(None, inputs)[0], expected)
    assert np.array_equal(runner.run(None, inputs)[0], expected)
    assert (tmp_path / "model.onnx.data").read_bytes() == before


def test_errors_name_the_node_and_what_was_expected() -> None:
    case = make_case("int4", 6, 8, 16, 2)
    with pytest.raises(Exception, match=r"QLinear4A8 node 'fc1': group_size=15, expected a divisor of K=32"):
        session(build(case, "int8", group_size=15))
    with pytest.raises(Exception, match=r"'fc1': scale is \[8, 2\], expected \[8, 4\]"):
        session(build(case, "int8", group_size=8))
    with pytest.raises(Exception, match=r"'fc1': bias is \[8\], expected \[9\]"):
        session(build(case, "int8", N=9))
    with pytest.raises(Exception, match=r"'fc1': x is \[2, 3, 31\], expected a last dimension of 32"):
        session(build(case, "int8")).run(None, {"x": np.zeros((2, 3, 31), np.float32)})
    runner = session(build(case, "int8", constant=False))
    inputs, _ = feeds(case, 2, False)
    with pytest.raises(Exception, match=r"'fc1': codes is \[8, 15\], expected \[8, 16\]"):
        runner.run(None, inputs | {"codes": inputs["codes"][:, :15]})


def test_columns_must_lie_in_what_is_given() -> None:
    case = make_case("int4", 6, 64, 32, 2)
    norm = {"prologue": "layer_norm_modulate", "epsilon": 1e-6}

    def gives(x: np.ndarray, rows: np.ndarray, **attributes: Any) -> np.ndarray:
        model = build(case, "int8", **attributes)
        shape = [None] * rows.ndim
        model.graph.input.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape))
        model.graph.node[0].input.extend(["rows", "rows"])
        return session(model).run(None, {"x": x, "rows": rows})[0]

    x, rows = np.ones((2, 3, 64), np.float32), np.zeros((2, 4, 20), np.float32)
    assert gives(x, rows, **norm, columns=[0, 80 - 64]).shape == (2, 3, 64)
    assert gives(x[:0], rows[:0], **norm, columns=[0, 16]).shape == (0, 3, 64)
    for column in (17, 2**62):
        with pytest.raises(
            Exception, match=rf"modulation is \[2, 4, 20\], .* 64 values from column {column} on"
        ):
            gives(x, rows, **norm, columns=[0, column])
    with pytest.raises(Exception, match=r"'fc1': columns \[0, -1\], expected none below 0"):
        gives(x, rows, **norm, columns=[0, -1])
    with pytest.raises(Exception, match=r"columns \[0\], expected one for each of 2 inputs"):
        gives(x, rows, **norm, columns=[0])
    with pytest.raises(Exception, match=r"columns \[3\], expected one for each of 0 inputs"):
        gives(x, rows, columns=[3])
    with pytest.raises(Exception, match=r"shift is \[2, 4, 20\], expected a last dimension of 64"):
        gives(x, rows, **norm)


SCRIPT = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
print("made")
"""


@pytest.mark.parametrize(
    ("isa", "message"),
    [
        ("portable", None),
        ("reference", "ditpress:QLinear4A8"),  # no op registered: without a function the node is unknown
        ("sse9", "instruction set 'sse9' is unknown"),
    ],
)
def test_environment_decides_what_is_registered(tmp_path: Path, isa: str, message: str | None) -> None:
    onnx.save(build(make_case("int4", 3, 8, 16, 2), "int8"), tmp_path / "m.onnx")
    result = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(cpu.library_path()), str(tmp_path / "m.onnx")],
        env={**os.environ, "DITPRESS_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if message is None:
        assert result.stdout.strip() == "made", result.stderr
    else:
        assert result.returncode != 0
        assert message in result.stderr
