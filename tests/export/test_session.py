"""The ONNX model in the place of the transformer."""

from __future__ import annotations

import warnings

import onnxruntime
import pytest
import torch
from diffusers import DDIMScheduler
from export_models import make_calls

from ditpress.errors import InputError
from ditpress.export import session as sessions
from ditpress.export.session import OnnxTransformer, onnx_session
from ditpress.load import PixelDiTPipeline


@pytest.fixture
def pair(exported):
    path, model = exported("float")
    return OnnxTransformer(path, threads=1), model


def test_has_the_face_of_a_transformer(pair):
    onnx, model = pair
    assert onnx.config.num_embeds_ada_norm == model.config.num_embeds_ada_norm == 10
    assert onnx.config["sample_size"] == 8
    assert onnx.dtype == torch.float32
    assert onnx.device == torch.device("cpu")
    assert onnx.to("cpu").to(torch.float16).eval().dtype == torch.float32


def test_calls_as_the_transformer_is_called(pair):
    onnx, model = pair
    for call in make_calls(batch=3):
        call.pop("return_dict")
        with torch.no_grad():
            expected = model(**call).sample
        hidden_states = call.pop("hidden_states")
        torch.testing.assert_close(onnx(hidden_states, **call).sample, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            onnx(hidden_states, return_dict=False, **call)[0], expected, rtol=0, atol=1e-5
        )
        # what pipelines do to half-precision or 32-bit inputs
        narrow = {**call, "class_labels": call["class_labels"].int()}
        torch.testing.assert_close(onnx(hidden_states.double(), **narrow).sample, expected, rtol=0, atol=1e-5)


def test_draws_the_same_images_in_the_pipeline(pair):
    onnx, model = pair
    images = []
    for transformer in (model, onnx):
        pipeline = PixelDiTPipeline(transformer=model, scheduler=DDIMScheduler(clip_sample=True))
        pipeline.transformer = transformer
        pipeline.to("cpu")
        pipeline.set_progress_bar_config(disable=True)
        images.append(
            pipeline(
                class_labels=[1, 2, 3],
                num_inference_steps=3,
                generator=[torch.Generator().manual_seed(seed) for seed in (1, 2, 3)],
                output_type="pt",
            ).images
        )
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-4)
    assert images[0].std() > 0


def test_refuses_what_the_graph_does_not_hold(pair):
    onnx, _ = pair
    call = make_calls()[0]
    with pytest.raises(InputError, match="'added'"):
        onnx(**call, added=torch.zeros(1))
    with pytest.raises(InputError, match="flag=None built in, got True"):
        onnx(**call, flag=True)
    call.pop("class_labels")
    with pytest.raises(InputError, match="class_labels"):
        onnx(**call)


def test_needs_a_config(exported, tmp_path):
    path, model = exported("float")
    (tmp_path / "model.onnx").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"config\.json"):
        OnnxTransformer(tmp_path)
    assert OnnxTransformer(tmp_path, model.config).config.sample_size == 8


def test_warns_once_without_the_library(exported, monkeypatch):
    path, _ = exported()
    monkeypatch.setattr(sessions, "library_path", lambda: None)
    sessions._warn_no_library.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = [onnx_session(path), onnx_session(path)]
    sessions._warn_no_library.cache_clear()
    assert [str(entry.message)[:53] for entry in caught] == [
        "ditpress was installed without its C++ kernels, ONNX "
    ]
    assert all(isinstance(session, onnxruntime.InferenceSession) for session in opened)


def test_threads_and_folder(exported):
    path, _ = exported()
    session = onnx_session(path.parent, threads=1, providers=["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_as_many_threads_as_pytorch(exported, monkeypatch):
    path, _ = exported()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert onnx_session(path).get_session_options().intra_op_num_threads == 3
