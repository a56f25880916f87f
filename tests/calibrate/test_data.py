"""Calls at noised data: the forward process by hand, the layout of the pipeline, files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from tiny_dit import CLASSES, tiny_dit, tiny_pipeline

from ditpress.calibrate.calls import record_calls
from ditpress.calibrate.data import LabelledLatents, load_data, noised_calls, noised_like
from ditpress.errors import InputError
from ditpress.load import Denoiser, PixelDiTPipeline, load_denoiser

SETTINGS: dict[str, Any] = {"samples": 6, "steps": 4, "seed": 3, "batch_size": 4}


def denoiser(scheduler: Any = None) -> Denoiser:
    if scheduler is None:
        return load_denoiser(tiny_pipeline())
    return load_denoiser(PixelDiTPipeline(transformer=tiny_dit(), scheduler=scheduler))


def data(value: float | None = None, count: int = 5) -> LabelledLatents:
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return LabelledLatents(x if value is None else torch.full_like(x, value), torch.arange(count) % CLASSES)


def test_ddpm_adds_noise_as_its_equation_says() -> None:
    model = denoiser()
    config = model.pipeline.scheduler.config
    alphas = np.cumprod(1.0 - np.linspace(config.beta_start, config.beta_end, 1000))
    zero = noised_calls(model, data(0.0), guidance=1.0, **SETTINGS)
    two = noised_calls(model, data(2.0), guidance=1.0, **SETTINGS)
    assert [call.timestep for call in zero] == [999.0, 749.0, 499.0, 249.0] * 2
    assert [len(call.kwargs["hidden_states"]) for call in zero] == [4] * 4 + [2] * 4
    for a, b in zip(zero, two, strict=True):
        alpha = alphas[int(a.timestep)]
        x, y = (call.kwargs["hidden_states"].double().numpy() for call in (a, b))
        np.testing.assert_allclose(y - x, 2.0 * np.sqrt(alpha), atol=1e-5)
        assert x.std() == pytest.approx(np.sqrt(1.0 - alpha), rel=0.2)


def test_flow_matching_mixes_data_and_noise() -> None:
    model = denoiser(FlowMatchEulerDiscreteScheduler())
    zero = noised_calls(model, data(0.0), guidance=1.0, **SETTINGS)
    two = noised_calls(model, data(2.0), guidance=1.0, **SETTINGS)
    for a, b in zip(zero, two, strict=True):
        sigma = a.timestep / 1000.0
        x, y = (call.kwargs["hidden_states"].double().numpy() for call in (a, b))
        np.testing.assert_allclose(y - x, 2.0 * (1.0 - sigma), atol=1e-5)
        assert x.std() == pytest.approx(sigma, rel=0.2)


def test_inputs_are_scaled_where_the_sampler_scales_them() -> None:
    model = denoiser(EulerDiscreteScheduler(beta_schedule="linear", timestep_spacing="trailing"))
    zero = noised_calls(model, data(0.0), guidance=1.0, **SETTINGS)
    for call in zero:  # variance-exploding noise of size sigma, over sqrt(sigma² + 1)
        alpha = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[int(call.timestep)]
        assert call.kwargs["hidden_states"].std() == pytest.approx(np.sqrt(1.0 - alpha), rel=0.2)


def test_calls_have_the_layout_of_recorded_ones() -> None:
    model = denoiser()
    recorded = record_calls(model, samples=6, steps=4, guidance=2.0, seed=0, batch_size=4)
    for made in (
        noised_calls(model, data(), guidance=2.0, **SETTINGS),
        noised_like(recorded, model, data(), 3),
    ):
        assert len(made) == len(recorded)
        for ours, theirs in zip(made, recorded, strict=True):
            assert ours.timestep == theirs.timestep
            assert ours.kwargs.keys() == theirs.kwargs.keys()
            for key, tensor in theirs.kwargs.items():
                assert ours.kwargs[key].shape == tensor.shape
                assert ours.kwargs[key].dtype == tensor.dtype
            half = len(ours.kwargs["hidden_states"]) // 2
            assert torch.equal(*ours.kwargs["hidden_states"].split(half))
            assert (ours.kwargs["class_labels"][half:] == CLASSES).all()
            assert (ours.kwargs["class_labels"][:half] < CLASSES).all()
    plain = record_calls(model, samples=3, steps=2, guidance=1.0, seed=0)
    assert [len(call.kwargs["class_labels"]) for call in noised_like(plain, model, data(), 0)] == [3, 3]
    # Every image and its class once before any comes a second time.
    marked = LabelledLatents(torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 8, 8), torch.arange(5))
    still = noised_calls(denoiser(FlowMatchEulerDiscreteScheduler()), marked, guidance=1.0, **SETTINGS)
    labels = torch.cat([still[0].kwargs["class_labels"], still[4].kwargs["class_labels"]])
    assert sorted(labels[:5].tolist()) == [0, 1, 2, 3, 4]


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    expected = data()
    arrays = {"latents": expected.latents, "labels": expected.labels}
    save_file(arrays, tmp_path / "data.safetensors")
    np.savez(
        tmp_path / "data.npz", latents=expected.latents.double().numpy(), labels=np.arange(5, dtype=np.uint8)
    )
    for name in ("data.safetensors", "data.npz"):
        found = load_data(tmp_path / name, denoiser())
        assert torch.equal(found.latents, expected.latents)
        assert torch.equal(found.labels, expected.labels)
        assert (found.latents.dtype, found.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"latents": np.zeros((5, 3, 8, 8), np.float32)},
            r"latents are torch\.float32 \[5, 3, 8, 8\], .*N, 1, 8, 8",
        ),
        (
            {"latents": np.zeros((5, 1, 8, 8), np.uint8)},
            r"latents are torch\.uint8 .*expected floating point",
        ),
        ({"labels": np.zeros(4, np.int64)}, r"labels are torch\.int64 \[4\], expected whole numbers \[5\]"),
        ({"labels": np.zeros(5, np.float32)}, r"labels are torch\.float32 \[5\], expected whole numbers"),
        ({"labels": np.full(5, CLASSES)}, "label 5, expected 0 to 4"),
        ({"labels": np.full(5, -1)}, "label -1, expected 0 to 4"),
        ({"latents": np.full((5, 1, 8, 8), np.nan, np.float32)}, "latents hold NaN or infinite values"),
        ({"latents": np.zeros((0, 1, 8, 8), np.float32), "labels": np.zeros(0, np.int64)}, "at least one"),
        ({"labels": None}, "has no .*labels"),
        ({"labels": np.array([None] * 5)}, "cannot be read"),
    ],
)
def test_data_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"latents": np.zeros((5, 1, 8, 8), np.float32), "labels": np.zeros(5, np.int64)}
    path = tmp_path / "data.npz"
    np.savez(path, **{name: array for name, array in (good | arrays).items() if array is not None})
    with pytest.raises(InputError, match=message):
        load_data(path, denoiser())


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, message in (("data.pt", "expected an .npz or .safetensors"), ("data.npz", "cannot be read")):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match=message):
            load_data(tmp_path / name, denoiser())
    (tmp_path / "data.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(InputError, match="cannot be read"):
        load_data(tmp_path / "data.safetensors", denoiser())
