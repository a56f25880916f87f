"""Recorded calls repeat what the pipeline did, and survive a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_dit import CLASSES, tiny_flux, tiny_pipeline

from ditpress.calibrate import Call, load_calls, record_calls, save_calls
from ditpress.calibrate.calls import recording
from ditpress.errors import InputError
from ditpress.load import load_denoiser


def test_calls_are_those_of_the_scheduler_and_replay_equal() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    outputs: list[torch.Tensor] = []
    handle = denoiser.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0].clone()))
    calls = record_calls(denoiser, samples=3, steps=4, guidance=2.0, seed=7)
    handle.remove()
    assert [call.timestep for call in calls] == [999, 749, 499, 249]
    first = calls[0].kwargs
    assert set(first) == {"hidden_states", "timestep", "class_labels"}
    assert first["class_labels"].tolist() == [0, 1, 2, *[CLASSES] * 3]
    noise = [torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(7 + i)) for i in range(3)]
    assert torch.equal(first["hidden_states"], torch.cat(noise * 2))
    assert first["timestep"].tolist() == [999] * 6
    for call, output in zip(calls, outputs, strict=True):
        assert torch.equal(denoiser.transformer(**call.kwargs).sample, output)


def test_recording_ends_with_the_sampling() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    calls = record_calls(denoiser, samples=1, steps=2, guidance=1.0, seed=0)
    denoiser.sample([1], steps=2)
    assert len(calls) == 2
    assert not denoiser.transformer._forward_pre_hooks


def test_positional_arguments_get_their_names() -> None:
    model = tiny_pipeline().transformer
    calls: list[Call] = []
    with recording(model, calls):
        model(torch.zeros(1, 1, 8, 8), torch.tensor([5]), class_labels=torch.tensor([2]), return_dict=False)
    assert set(calls[0].kwargs) == {"hidden_states", "timestep", "class_labels"}
    assert calls[0].timestep == 5.0


def test_tensors_are_copies() -> None:
    model = tiny_pipeline().transformer
    calls: list[Call] = []
    x = torch.zeros(1, 1, 8, 8)
    with recording(model, calls):
        model(hidden_states=x, timestep=torch.tensor([5]), class_labels=torch.tensor([2]))
    x += 1
    assert calls[0].kwargs["hidden_states"].eq(0).all()


def test_a_call_without_timestep_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="Linear: was called without a timestep"), recording(model, []):
        model(torch.zeros(1, 2))


def test_file_round_trip_with_nested_arguments(tmp_path: Path) -> None:
    inputs = tiny_flux()[1]
    extra = {"joint_attention_kwargs": {"scale": 1.0, "parts": [torch.arange(3), None], "pair": (1, "two")}}
    calls: list[Call] = [Call(0.01, inputs | extra), Call(700.0, {"hidden_states": torch.randn(2).half()})]
    save_calls(calls, tmp_path / "calls")
    loaded = load_calls(tmp_path / "calls")
    assert [call.timestep for call in loaded] == [0.01, 700.0]
    for name, value in inputs.items():
        assert torch.equal(loaded[0].kwargs[name], value)
        assert loaded[0].kwargs[name].dtype == value.dtype
    nested = loaded[0].kwargs["joint_attention_kwargs"]
    assert (nested["scale"], nested["parts"][1], nested["pair"]) == (1.0, None, (1, "two"))
    assert torch.equal(nested["parts"][0], torch.arange(3))
    assert loaded[1].kwargs["hidden_states"].dtype == torch.float16


def test_recorded_calls_survive_a_file(tmp_path: Path) -> None:
    denoiser = load_denoiser(tiny_pipeline())
    calls = record_calls(denoiser, samples=2, steps=3, guidance=None, seed=0)
    save_calls(calls, tmp_path / "calls")
    for call, again in zip(calls, load_calls(tmp_path / "calls"), strict=True):
        assert torch.equal(denoiser.transformer(**again.kwargs)[0], denoiser.transformer(**call.kwargs)[0])


def test_what_cannot_be_stored_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.callback: a function cannot be stored"):
        save_calls([Call(1.0, {"callback": lambda: None})], tmp_path / "calls")
    assert not (tmp_path / "calls").exists()
    with pytest.raises(InputError, match="no readable recorded calls"):
        load_calls(tmp_path / "calls")
    save_calls([Call(1.0, {"x": torch.zeros(3)})], tmp_path / "calls")
    weights = tmp_path / "calls" / "calls.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InputError, match="no readable recorded calls"):
        load_calls(tmp_path / "calls")
    (tmp_path / "calls" / "calls.json").write_text(json.dumps({"schema": 9, "calls": []}))
    with pytest.raises(InputError):
        load_calls(tmp_path / "calls")
