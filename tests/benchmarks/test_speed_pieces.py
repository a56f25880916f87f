"""The parts of the speed benchmark that need no second process."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from speed.contestants import OURS, PEERS, RULES, contestants_of, names_of
from speed.hardware import busy_seconds, describe, one_per_core
from speed.ours import FORMATS, fused_rules
from speed.processes import reason
from speed.replicate import input_name, replicate
from speed.worker import resident_bytes, timed
from speed.workloads import WORKLOADS, copies, linear_shape, split_case


def test_copies_of_a_linear_are_other_weights(tmp_path):
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["hidden_states", "w"], ["sample"])],
        "linear",
        [value("hidden_states", onnx.TensorProto.FLOAT, ["batch", 8])],
        [value("sample", onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, path)
    replicate(path, 3)
    session = onnxruntime.InferenceSession(path)
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    names = [node.name for node in session.get_inputs()]
    assert [input_name(name) for name in names] == ["hidden_states"] * 3
    results = session.run(None, dict.fromkeys(names, x))
    for index, result in enumerate(results):
        np.testing.assert_allclose(result, x @ np.roll(weight, index, axis=0), rtol=1e-5, atol=1e-6)


def test_cases():
    assert split_case("1152x4608@8") == ("1152x4608", 8)
    assert split_case("step") == ("step", None)
    assert linear_shape("1152x4608") == (1152, 4608)
    assert copies((1152, 1152), 32, quick=False) == 32
    assert copies((1152, 4608), 32, quick=False) * 1152 * 4608 // 2 > 60e6
    for workload in WORKLOADS.values():
        assert WORKLOADS[workload.source].source == workload.source
        assert workload.is_linear == all("@" in case for case in workload.cases)


def test_every_contestant_has_what_it_needs():
    for workload in WORKLOADS.values():
        named = names_of(contestants_of(workload.contestants, workload.is_linear))
        assert workload.baseline in named
        for variants in named.values():
            assert len({one.variant for one in variants}) == len(variants)
    assert {one.artifact.removeprefix("ours-") for one in OURS} == set(FORMATS)
    assert not any(one.ours or one.library for one in PEERS)


def test_fused_rules():
    assert fused_rules("ours-w4a8") is None
    assert fused_rules("ours-w4a8-without-all") == ()
    assert set(RULES) - set(fused_rules("ours-w4a8-without-gelu")) == {"gelu"}


def test_reason_is_the_last_line():
    text = "Traceback\n  File\nditpress.errors.InputError: unknown weight format 'x'\n\n"
    assert reason(text, 1) == "InputError: unknown weight format 'x'"
    assert reason("", 3) == "exit status 3"
    assert "out of memory" in reason("whatever", -9)


def test_timed_leaves_the_first_run_out():
    calls = []
    answer = timed(lambda: calls.append(1), 4)
    assert len(calls) == 5
    assert len(answer["seconds"]) == 4


def test_resident_bytes():
    status = "Name:\tpython\nRssAnon:\t     100 kB\nRssFile:\t      20 kB\nRssShmem:\t       5 kB\n"
    assert resident_bytes(status) == 120 * 1024


def test_hardware(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: A Processor\nflags\t\t: fpu avx2 avx512_vnni\n")
    found = describe(cpuinfo, tmp_path)
    assert found["cpu"] == "A Processor"
    assert found["flags"] == ["avx2", "avx512_vnni"]
    assert found["last_level_cache"] == "unknown"
    assert busy_seconds() >= 0


def test_one_cpu_of_each_core(tmp_path):
    if len(one_per_core(tmp_path)) < 2:
        pytest.skip("one core")
    for cpu in one_per_core(tmp_path):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-1\n")
    assert len(one_per_core(tmp_path)) == 1
