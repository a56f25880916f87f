"""The two sides of a speed measurement."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from export_models import make_calls

from ditpress.errors import InputError
from ditpress.export.bench import step_functions
from ditpress.export.onnx import export_onnx
from ditpress.load import PixelDiTPipeline, load_denoiser


def load(model):
    return lambda: load_denoiser(PixelDiTPipeline(transformer=model, scheduler=DDIMScheduler()))


def test_both_steps_are_the_models(exported, tmp_path):
    """The inputs come from the pipeline itself; both steps run on the same ones."""
    path, _ = exported()
    _, original = exported("float")
    with step_functions(load(original), path, batch=4, threads=1, scratch=tmp_path) as steps:
        assert set(steps) == {"original", "compressed"}
        first, second = steps["original"](), steps["compressed"]()
        assert first.shape == second.shape == (4, 1, 8, 8)
        torch.testing.assert_close(first, steps["original"](), rtol=0, atol=0)
        assert (first - second).abs().max() > 0  # two models, not one twice
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []  # 2.7 GB for a DiT-XL: not left behind


def test_refuses_another_model(exported, tmp_path, monkeypatch):
    path, _ = exported()
    _, original = exported("float")
    call = make_calls()[0]
    call.pop("class_labels")
    monkeypatch.setattr("ditpress.export.bench.export_transformer", lambda *_: (path, None))
    with (
        pytest.raises(InputError, match="expected an export of the same model"),
        step_functions(load(original), path, call=call, scratch=tmp_path),
    ):
        pass


def test_export_of_a_denoiser_records_its_own_calls(exported, tmp_path):
    _, model = exported("float")
    path = export_onnx(load(model)(), tmp_path / "onnx")
    assert path == tmp_path / "onnx" / "transformer" / "model.onnx"
    assert path.is_file()
