"""Streaming statistics against the same figure on everything at once."""

from __future__ import annotations

import pytest
import torch
from tiny_dit import tiny_dit, tiny_pipeline

from ditpress.calibrate import Calibration, Call, Want, record_calls
from ditpress.calibrate.statistics import InputAbsMax
from ditpress.errors import InputError, StageError
from ditpress.load import anatomy_of, load_denoiser


def test_absmax_of_all_layers_equals_that_of_the_concatenated_inputs() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    model = denoiser.transformer
    calls = record_calls(denoiser, samples=3, steps=4, guidance=2.0, seed=0)
    layers = list(anatomy_of(model).linears(model))
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: inputs[name].append(args[0].flatten(0, -2).clone())
        )
        for name in layers
    ]
    for call in calls:
        model(**call.kwargs)
    for handle in handles:
        handle.remove()

    found = Calibration(calls).collect(model, [Want(name, "input_absmax") for name in layers])
    assert {want.layer for want in found} == set(layers)
    for want, result in found.items():
        assert torch.equal(result, torch.cat(inputs[want.layer]).abs().amax(0)), want.layer
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_pass_serves_all_wants() -> None:
    model = tiny_dit()
    runs: list[int] = []
    model.register_forward_pre_hook(lambda m, a: runs.append(1))
    kwargs = {"timestep": torch.tensor([1]), "class_labels": torch.tensor([0])}
    calls = [Call(1.0, {"hidden_states": torch.randn(1, 1, 8, 8), **kwargs}) for _ in range(3)]
    wants = [Want("proj_out_2", "input_absmax"), Want("proj_out_1", "input_absmax")]
    Calibration(calls).collect(model, wants + wants)
    assert len(runs) == 3
    assert Calibration([]).collect(model, []) == {}


def test_absmax_sees_the_sign_every_axis_and_half_precision() -> None:
    statistic = InputAbsMax()
    x = torch.zeros(2, 3, 4)
    x[1, 2, 0], x[0, 1, 3] = -5.0, 2.0
    statistic.update(x.half())
    statistic.update(torch.tensor([[1.0, 0.0, -3.0, 1.0]]))
    assert statistic.result().tolist() == [5.0, 0.0, 3.0, 2.0]
    assert statistic.result().dtype == torch.float32


def test_bad_wants_are_named() -> None:
    model = tiny_dit()
    kwargs = {"timestep": torch.tensor([1]), "class_labels": torch.tensor([0])}
    calibration = Calibration([Call(1.0, {"hidden_states": torch.randn(1, 1, 8, 8), **kwargs})])
    with pytest.raises(InputError, match=r"proj_out_9: no such layer in DiTTransformer2DModel"):
        calibration.collect(model, [Want("proj_out_1", "input_absmax"), Want("proj_out_9", "input_absmax")])
    with pytest.raises(InputError, match="statistic 'mean': unknown, expected one of input_absmax"):
        calibration.collect(model, [Want("proj_out_1", "mean")])
    with pytest.raises(InputError, match="without recorded calls"):
        Calibration([]).collect(model, [Want("proj_out_1", "input_absmax")])
    model.spare = torch.nn.Linear(2, 2)
    with pytest.raises(StageError, match="spare: was never called"):
        calibration.collect(model, [Want("spare", "input_absmax")])
    assert not any(module._forward_pre_hooks for module in model.modules())
