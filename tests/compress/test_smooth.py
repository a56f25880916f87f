"""Smoothing changes nothing before anything is quantized, and less is lost afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny_dit import dit_inputs, tiny_dit, tiny_flux, tiny_pipeline, tiny_pixart, tiny_sd3
from torch import Tensor, nn

from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import Call, record_calls
from ditpress.calibrate.statistics import Want
from ditpress.compress import Quantize, Smooth, parse_stage
from ditpress.compress.absorb import fold
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.smooth import SMOOTHED
from ditpress.compress.smoothing import candidates, smoothing_factors
from ditpress.compress.stage import complete
from ditpress.errors import InputError, StageError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import TransformedLinear
from ditpress.load import Role, anatomy_of, load_denoiser
from ditpress.load.denoiser import Denoiser
from ditpress.recipes.recipe import load_recipe
from ditpress.recipes.skeleton import skeleton

Made = tuple[nn.Module, dict[str, Any]]
INT4 = WeightSpec(format="int4", group=8)


def made_dit() -> Made:
    model = tiny_dit(seed=3)
    return model, dict(dit_inputs(model))


FAMILIES = [made_dit, tiny_pixart, tiny_sd3, tiny_flux]


def denoiser_of(model: nn.Module) -> Denoiser:
    """What stages use of a denoiser."""
    return cast(Denoiser, SimpleNamespace(transformer=model, anatomy=anatomy_of(model)))


def smoothed(stage: Smooth, denoiser: Denoiser, calls: list[Call]) -> Mapping[Want, Tensor]:
    statistics = Calibration(calls).collect(denoiser.transformer, stage.wants(denoiser))
    stage.apply_calls(denoiser, statistics, calls)
    return statistics


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


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.5},
        {"alpha": 0.5, "online": SMOOTHED},
        {"alpha": "search", "weights": INT4, "activations": "int8", "min_timesteps": 1},
    ],
    ids=["folded", "all-online", "searched"],
)
@pytest.mark.parametrize("make", FAMILIES)
def test_every_family_keeps_its_function(make: Callable[[], Made], settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model, inputs = make()
    denoiser = denoiser_of(model)
    before = model(**inputs).sample
    roles = denoiser.anatomy.linears(model)
    folded = {name for group in denoiser.anatomy.smooth_groups(model) for name in group.linears}
    stage = Smooth(**settings)
    weights = {name: model.get_submodule(name).weight.clone() for name in roles}
    smoothed(stage, denoiser, [Call(1.0, inputs)])
    after = model(**inputs).sample
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())
    online = {name for name, module in model.named_modules() if isinstance(module, TransformedLinear)}
    expected = {name for name, role in roles.items() if role in stage.online}
    assert online == expected - folded
    assert online  # ff.net.2 of every family: a GELU stands before it
    if settings.get("online") == SMOOTHED:  # all of them are smoothed, in one way or the other
        for name, role in roles.items():
            now = model.get_submodule(f"{name}.linear" if name in online else name).weight
            if role is not Role.MODULATION:  # PixArt's, one for all blocks, cannot absorb anything
                assert torch.equal(now, weights[name]) == (role not in SMOOTHED), name


def test_the_stage_folds_the_factors_of_the_recorded_calls() -> None:
    denoiser = load_denoiser(tiny_pipeline(seed=1))
    original = copy.deepcopy(denoiser.transformer)
    calls = record_calls(denoiser, samples=2, steps=3, guidance=2.0, seed=0)
    inputs: dict[str, list[Tensor]] = {}
    names = ["transformer_blocks.1.ff.net.0.proj", "transformer_blocks.1.ff.net.2"]
    for name in names:
        original.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: inputs.setdefault(name, []).append(args[0].flatten(0, -2))
        )
    expected = [original(**call.kwargs).sample for call in calls]
    smoothed(Smooth(alpha=0.5), denoiser, calls)
    for name in names:
        weight = original.get_submodule(name).weight.double()
        absmax = torch.cat(inputs[name]).abs().amax(dim=0).double()  # over all timesteps together
        factors = (absmax / weight.abs().amax(dim=0)).sqrt()  # eq. 4 with alpha = 1/2
        module = denoiser.transformer.get_submodule(name)
        if isinstance(module, TransformedLinear):
            torch.testing.assert_close(module.transform.factors.double(), 1.0 / factors, rtol=1e-6, atol=1e-9)
            module = module.linear
        torch.testing.assert_close(module.weight.double(), weight * factors, rtol=1e-6, atol=1e-9)
    for call, output in zip(calls, expected, strict=True):
        torch.testing.assert_close(denoiser.transformer(**call.kwargs).sample, output, rtol=1e-4, atol=1e-4)


def test_the_plan_is_what_the_stage_makes() -> None:
    for stage in (Smooth(), Smooth(online=()), Smooth(online=SMOOTHED)):
        for make in FAMILIES:
            model, inputs = make()
            denoiser = denoiser_of(model)
            plan = skeleton(model)
            stage.plan(denoiser, plan)
            smoothed(stage, denoiser, [Call(1.0, inputs)])
            shapes = [
                {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
                for module in (plan, model)
            ]
            assert shapes[0] == shapes[1]


class Kernel:
    """The error of a linear as it will run, by the op itself: another way than the search's."""

    def __init__(self, rows: Tensor, weights: list[Tensor], spec: WeightSpec, activation: str) -> None:
        self.rows, self.weights, self.spec, self.activation = rows, weights, spec, activation

    def error(self, factors: Tensor) -> float:
        total = 0.0
        for weight in self.weights:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = (weight * factors.float()).contiguous()
            truth = self.rows.double() @ weight.double().T
            output = quantized(layer, self.spec, self.activation)(self.rows / factors.float())
            total += float((output.double() - truth).square().sum())
        return total


def quantized(linear: nn.Linear, spec: WeightSpec, activation: str) -> nn.Module:
    """``linear`` by the stage quantize."""
    holder = nn.ModuleDict({"linear": linear})
    anatomy = SimpleNamespace(linears=lambda root: {"linear": Role.MLP_IN})
    stage = Quantize(weights=spec, activations=cast(Any, activation))
    stage.apply(cast(Denoiser, SimpleNamespace(transformer=holder, anatomy=anatomy)), {})
    assert isinstance(holder["linear"], QuantizedLinear)
    return holder["linear"]


@pytest.mark.parametrize("kind", ["smoothquant", "svdquant"])
def test_the_exponents_found_are_the_best_as_the_layer_runs(kind: str) -> None:
    denoiser = load_denoiser(tiny_pipeline(seed=2))
    original = copy.deepcopy(denoiser.transformer)
    calls = record_calls(denoiser, samples=2, steps=8, guidance=1.0, seed=0)
    stage = Smooth(alpha="search", candidates=cast(Any, kind), weights=INT4, activations="int8")
    targets = stage.targets(denoiser.anatomy, denoiser.transformer)
    statistics = smoothed(stage, denoiser, calls)
    chosen = set()
    for target in targets:
        first = target.linears[0]
        low, high, rows = (statistics[Want(first, name)] for name in ("input_min", "input_max", "input_rows"))
        assert rows.shape[0] == 8 * 2 * 4  # timesteps, images, tokens: every row there is
        weights = [original.get_submodule(name).weight for name in target.linears]
        absmax, largest = torch.maximum(-low, high), torch.cat(weights).abs().amax(dim=0)
        assert torch.equal(absmax, rows.abs().amax(dim=0))
        layer = Kernel(rows, weights, INT4, "int8")
        errors = [
            layer.error(smoothing_factors(absmax, largest, alpha, beta))
            for alpha, beta in candidates(cast(Any, kind))
        ]
        module = denoiser.transformer.get_submodule(first)
        smoothed_weight = (module.linear if isinstance(module, TransformedLinear) else module).weight
        found = smoothed_weight.double().norm(dim=0) / weights[0].double().norm(dim=0)
        error = layer.error(found)
        assert error == pytest.approx(min(errors), rel=1e-3)
        assert error <= errors[0] * 1.001  # candidate 0: no smoothing
        chosen.add(errors.index(min(errors)))
    assert len(chosen) > 1  # layers differ in what is best


def test_the_formats_come_from_the_stage_quantize_that_follows() -> None:
    quantize = Quantize(weights=WeightSpec(format="nf4", group=32), activations="none")
    (smooth, _) = complete((Smooth(alpha="search"), quantize))
    assert isinstance(smooth, Smooth)
    assert (smooth.weights, smooth.activations) == (quantize.weights, "none")
    (own, _) = complete((Smooth(alpha="search", weights=INT4), quantize))
    assert isinstance(own, Smooth)
    assert (own.weights, own.activations) == (INT4, "none")
    assert complete((Smooth(), quantize)) == (Smooth(), quantize)
    with pytest.raises(
        InputError, match=r"smooth\.weights: the search needs to know .* put a stage quantize"
    ):
        complete((Smooth(alpha="search"),))
    # Written out, and read back as the same.
    recipe = load_recipe("w4a8", ["smooth.alpha=search", "quantize.weights.group=channel"])
    recipe = recipe.model_copy(update={"stages": complete(recipe.stages)})
    data = recipe.to_data()["stages"]
    assert data[0]["smooth"]["weights"] == data[1]["quantize"]["weights"]
    assert data[0]["smooth"]["weights"]["group"] == "channel"
    assert data[0]["smooth"]["activations"] == "int8"
    assert parse_stage(data[0]) == recipe.stages[0]


def test_too_few_timesteps_for_a_search_are_refused_by_name() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    state = copy.deepcopy(denoiser.transformer.state_dict())
    calls = record_calls(denoiser, samples=1, steps=7, guidance=1.0, seed=0)
    stage = Smooth(alpha="search", weights=INT4, activations="int8")
    with pytest.raises(
        InputError,
        match=r"blocks\.0\.attn1\.to_q: .* 7 different timesteps, .* needs 8; set calibration\.steps",
    ):
        smoothed(stage, denoiser, calls * 2)
    assert all(torch.equal(state[name], tensor) for name, tensor in denoiser.transformer.state_dict().items())
    smoothed(Smooth(alpha=0.5), denoiser, calls)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"blocks\.1\.ff\.net\.2: its inputs are NaN or overflow"),
        (float("inf"), r"blocks\.1\.ff\.net\.2: its inputs are NaN or overflow"),
        (None, r"blocks\.1\.ff\.net\.2: its inputs are the same for every token and timestep"),
    ],
)
def test_broken_activations_change_nothing_and_are_named(value: float | None, message: str) -> None:
    denoiser = load_denoiser(tiny_pipeline())
    state = copy.deepcopy(denoiser.transformer.state_dict())
    stage = Smooth()
    calls = record_calls(denoiser, samples=1, steps=2, guidance=1.0, seed=0)
    statistics = Calibration(calls).collect(denoiser.transformer, stage.wants(denoiser))
    low, high = (Want("transformer_blocks.1.ff.net.2", name) for name in ("input_min", "input_max"))
    if value is None:
        statistics[high] = statistics[low]
    else:
        statistics[high][3] = value
    with pytest.raises(StageError, match=message):
        stage.apply(denoiser, statistics)
    assert all(torch.equal(state[name], tensor) for name, tensor in denoiser.transformer.state_dict().items())


def test_nan_weights_and_groups_that_do_not_fit_are_refused_before_anything_changes() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    calls = record_calls(denoiser, samples=1, steps=8, guidance=1.0, seed=0)
    state = copy.deepcopy(denoiser.transformer.state_dict())
    stage = Smooth(alpha="search", weights=WeightSpec(format="int4", group=48), activations="int8")
    with pytest.raises(InputError, match=r"to_q: K = 16 is not divisible by the group 48"):
        smoothed(stage, denoiser, calls)
    assert all(torch.equal(state[name], tensor) for name, tensor in denoiser.transformer.state_dict().items())
    statistics = Calibration(calls).collect(denoiser.transformer, Smooth().wants(denoiser))
    denoiser.transformer.transformer_blocks[1].attn1.to_v.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"blocks\.1\.attn1\.to_v\.weight holds NaN"):
        Smooth().apply(denoiser, statistics)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r'smooth\.alpha: expected a number from 0 to 1, or "search", got 1\.5'),
        ({"alpha": "grid"}, r"smooth\.alpha: expected a number"),
        ({"alpha": True}, r"smooth\.alpha: expected a number"),
        ({"online": ["modulation"]}, r"smooth\.online: modulation is not smoothed; known: qkv"),
        ({"candidates": "all"}, r"smooth\.candidates: input should be 'smoothquant' or 'svdquant'"),
        ({"min_timesteps": 0}, r"smooth\.min_timesteps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_stage({"smooth": settings})


def test_the_search_loses_less_than_one_alpha_and_than_none_on_other_images() -> None:
    """W4A8 on zoo:mnist-dit: squared error of layer outputs on images that calibration has not seen."""
    denoiser = load_denoiser("zoo:mnist-dit")
    calls = record_calls(denoiser, samples=2, steps=8, guidance=1.0, seed=0)
    fresh = record_calls(denoiser, samples=2, steps=5, guidance=1.0, seed=100)
    spec = WeightSpec(format="int4", group=64)
    layers = [f"transformer_blocks.{i}.{part}" for i in (0, 3) for part in ("ff.net.0.proj", "ff.net.2")]
    wants = [Want(name, "input_rows") for name in layers]
    errors: dict[str, float] = {}
    for alpha in (None, 0.5, "search"):
        copied = denoiser_of(copy.deepcopy(denoiser.transformer))
        if alpha is not None:
            stage = Smooth(alpha=cast(Any, alpha), weights=spec, activations="int8")
            # Blocks 1, 2, 4 and 5 are of no interest here.
            smoothed(stage, copied, calls)
        rows = Calibration(fresh).collect(copied.transformer, wants)
        for name in layers:
            module = copied.transformer.get_submodule(name)
            read = rows[Want(name, "input_rows")]
            if isinstance(module, TransformedLinear):
                read, module = module.transform(read), module.linear
            truth = read.double() @ module.weight.double().T + module.bias.double()
            error = (quantized(module, spec, "int8")(read).double() - truth).square().sum()
            errors[f"{alpha}"] = errors.get(f"{alpha}", 0.0) + float(error / truth.square().sum())
    assert errors["search"] < errors["0.5"]
    assert errors["search"] < errors["None"]
