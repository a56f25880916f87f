"""SmoothQuant, eq. 4, and that folding it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_dit import tiny_dit, tiny_pipeline

from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import record_calls
from ditpress.compress import Smooth
from ditpress.compress.smooth import fold, smoothing_factors
from ditpress.errors import StageError
from ditpress.load.anatomy import anatomy_of
from ditpress.load.denoiser import load_denoiser


def test_factors_are_those_of_the_paper() -> None:
    inputs, weights = torch.tensor([4.0, 9.0, 0.0, 1.0, 1e-12]), torch.tensor([1.0, 4.0, 2.0, 0.0, 1.0])
    # sqrt(4 / 1), sqrt(9 / 4); a silent channel and one without weight stay; a nearly silent one is clamped
    assert smoothing_factors(inputs, weights, 0.5).tolist() == pytest.approx([2.0, 1.5, 1.0, 1.0, 1e-4])
    assert float(smoothing_factors(inputs, weights, 1.0)[0]) == pytest.approx(4.0)
    assert float(smoothing_factors(inputs, weights, 0.0)[1]) == pytest.approx(0.25)


def test_folding_any_factors_preserves_the_function_in_float64() -> None:
    transformer = tiny_dit(seed=3).double()
    generator = torch.Generator().manual_seed(5)
    inputs = {
        "hidden_states": torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64),
        "timestep": torch.tensor([999, 500, 3]),
        "class_labels": torch.arange(3),
    }
    with torch.no_grad():
        before = transformer(**inputs).sample
        groups = anatomy_of(transformer).smooth_groups(transformer)
        assert {group.absorb for group in groups} == {"modulation", "rows"}
        for group in groups:
            channels = transformer.get_submodule(group.linears[0]).in_features
            fold(transformer, group, torch.rand(channels, generator=generator, dtype=torch.float64) * 9 + 0.1)
        after = transformer(**inputs).sample
    assert float((after - before).abs().max()) < 1e-12 * float(before.abs().max()) * 100


def test_the_stage_folds_the_factors_of_the_recorded_calls() -> None:
    denoiser = load_denoiser(tiny_pipeline(seed=1))
    original = copy.deepcopy(denoiser.transformer)
    calls = record_calls(denoiser, samples=2, steps=3, guidance=2.0, seed=0)
    stage = Smooth(alpha=0.5)
    statistics = Calibration(calls).collect(denoiser.transformer, stage.wants(denoiser))
    stage.apply(denoiser, statistics)
    # The last group of the block, the MLP: no other fold touches its linear.
    group = [g for g in denoiser.anatomy.smooth_groups(original) if g.absorb == "modulation"][-1]
    weights = [original.get_submodule(name).weight.double() for name in group.linears]
    largest = torch.cat(weights).abs().amax(dim=0)
    absmax = next(value for want, value in statistics.items() if want.layer == group.linears[0]).double()
    factors = (absmax / largest).sqrt()  # eq. 4 with alpha = 1/2
    for name, weight in zip(group.linears, weights, strict=True):
        smoothed = denoiser.transformer.get_submodule(name).weight.double()
        torch.testing.assert_close(smoothed, weight * factors, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        for call in calls:
            expected, got = original(**call.kwargs).sample, denoiser.transformer(**call.kwargs).sample
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_broken_statistics_change_nothing() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    state = copy.deepcopy(denoiser.transformer.state_dict())
    stage = Smooth()
    statistics = {
        want: torch.ones(denoiser.transformer.get_submodule(want.layer).in_features)
        for want in stage.wants(denoiser)
    }
    statistics[stage.wants(denoiser)[-1]][0] = float("inf")
    with pytest.raises(StageError, match="overflow"):
        stage.apply(denoiser, statistics)
    assert all(torch.equal(state[name], tensor) for name, tensor in denoiser.transformer.state_dict().items())
