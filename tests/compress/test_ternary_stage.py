"""The stage ``ternary`` on a tiny model: what it stores, that it learns, and that it repeats itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_dit import tiny_pipeline
from torch import nn

from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import record_calls
from ditpress.calibrate.statistics import Want
from ditpress.compress import parse_stage
from ditpress.compress.quantize.fit import fit_weight
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.quantize.student import FakeNormed, fake_layers, harden, normed, start_norms
from ditpress.compress.quantize.ternary_stage import Ternary
from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import LowRankLinear, NormedLinear
from ditpress.load import Denoiser, Role, load_denoiser
from ditpress.recipes.skeleton import planned
from ditpress.validate.paired import output_sqnr

QUICK = {
    "samples": 8,
    "sampling_steps": 4,
    "batch": 4,
    "training": {"steps": 120, "calls": 2, "learning_rate": 0.03},
}


def denoiser() -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=2))


def stage(**fields: Any) -> Ternary:
    parsed = parse_stage({"ternary": QUICK | fields})
    assert isinstance(parsed, Ternary)
    return parsed


def held_out(model: Denoiser) -> list[Any]:
    return record_calls(model, samples=6, steps=4, guidance=2.0, seed=77)


@pytest.mark.parametrize("format", ["ternary", "ternary-2bit"])
def test_distillation_beats_rounding_on_calls_it_has_not_seen(format: str) -> None:
    original = denoiser()
    calls = held_out(original)
    weights = {"format": format, "group": "channel"}
    rounded, trained = denoiser(), denoiser()
    Quantize(weights=weights, modulation=weights).apply(rounded, {})
    stage(weights=weights, modulation=weights, norm=False).apply(trained, {})
    before = output_sqnr(original.transformer, rounded.transformer, calls).total_db
    after = output_sqnr(original.transformer, trained.transformer, calls).total_db
    assert after > before + 4
    roles = original.anatomy.linears(original.transformer)
    for name, role in roles.items():
        layer = trained.transformer.get_submodule(name)
        kept = role in (Role.EMBEDDER, Role.FINAL, Role.OTHER)
        assert isinstance(layer, nn.Linear) if kept else layer.format == format
        if kept:
            assert torch.equal(layer.weight, original.transformer.get_submodule(name).weight)
        else:
            values = (layer.dequantize() / layer.scale).round()
            assert set(values.unique().tolist()) <= {-1.0, 0.0, 1.0}
            assert layer.activation == ("none" if role is Role.MODULATION else "int8")


def test_two_runs_give_the_same_bits() -> None:
    states = []
    for _ in range(2):
        model = denoiser()
        quick = QUICK["training"] | {"steps": 10}
        stage(training=quick).apply(model, {})
        states.append(model.transformer.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("scales", ["learned", "least-squares"])
def test_the_norm_stands_after_the_modulation(scales: str) -> None:
    model = denoiser()
    original = copy.deepcopy(model.transformer)
    calls = held_out(model)
    stage(scales=scales, norm=True).apply(model, {})
    block = model.transformer.transformer_blocks[1]
    assert isinstance(block.norm1.linear, NormedLinear)
    assert block.norm1.linear.linear.format == "ternary"
    assert isinstance(block.attn1.to_q, QuantizedLinear)
    assert output_sqnr(original, model.transformer, calls).total_db > 8


def test_the_norm_starts_where_the_output_matches() -> None:
    """The gain is that of least squares; with inputs of one condition it gives the output back exactly."""
    model = denoiser()
    teacher = model.transformer
    calls = record_calls(model, samples=1, steps=1, guidance=1.0, seed=0)
    student = copy.deepcopy(teacher)
    name = "transformer_blocks.0.norm1.linear"
    layers = fake_layers(model.with_transformer(student), {name: stage().plans(model, teacher)[name]}, ())
    start_norms(student, teacher, layers, [name], calls)
    wrapped = layers[name]
    assert isinstance(wrapped, FakeNormed)
    assert student.get_submodule(name) is wrapped
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    y = wrapped.linear(x)
    torch.testing.assert_close(normed(y), nn.functional.rms_norm(y, y.shape[-1:], eps=1e-6))
    seen: list[torch.Tensor] = []
    for module in (teacher, student):
        handle = module.get_submodule(name).register_forward_hook(lambda m, a, o: seen.append(o))
        module(**calls[0].kwargs)
        handle.remove()
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("format", ["ternary", "int4", "fp4-e2m1"])
def test_training_starts_from_the_codes_of_gptq(format: str) -> None:
    model = denoiser()
    spec = {"format": format, "group": "channel", "rounding": "gptq"}
    names = [n for n, r in model.anatomy.linears(model.transformer).items() if r is Role.QKV][:3]
    plans = stage(weights=spec).plans(model, model.transformer)
    calls = record_calls(model, samples=2, steps=3, guidance=1.0, seed=0)
    moments = Calibration(calls).collect(
        model.transformer, [Want(name, "input_second_moment") for name in names]
    )
    student = model.with_transformer(copy.deepcopy(model.transformer))
    layers = fake_layers(student, {name: plans[name] for name in names}, calls)
    for name in names:  # one block's layers read the same floats
        linear = model.transformer.get_submodule(name)
        fitted = fit_weight(
            linear.weight, plans[name].weights, name, moments[Want(name, "input_second_moment")]
        )
        hard = harden(layers[name])
        assert isinstance(hard, QuantizedLinear)
        torch.testing.assert_close(hard.dequantize(), fitted.dequantize(), rtol=1e-6, atol=1e-8)
        nearest = fit_weight(linear.weight, plans[name].weights.model_copy(update={"rounding": "nearest"}))
        assert not torch.equal(fitted.codes, nearest.codes)


def test_a_branch_is_stored_and_helps() -> None:
    model = denoiser()
    names = [n for n, r in model.anatomy.linears(model.transformer).items() if r is Role.QKV]

    def fakes(**fields: Any) -> dict[str, nn.Module]:
        plans = stage(**fields).plans(model, model.transformer)
        student = model.with_transformer(copy.deepcopy(model.transformer))
        return fake_layers(student, {name: plans[name] for name in names}, ())

    plain, branched = fakes(), fakes(low_rank=4)
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))
    for name in names:
        expected = model.transformer.get_submodule(name)(x)
        errors = [float((layers[name](x) - expected).square().mean()) for layers in (plain, branched)]
        assert errors[1] < 0.8 * errors[0]
        hard = harden(branched[name])
        assert isinstance(hard, LowRankLinear)
        assert (hard.linear.format, hard.down.format, hard.up.format) == ("ternary", "int8", "int8")
        torch.testing.assert_close(hard(x), branched[name](x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fields", [{}, {"norm": False, "low_rank": 3}, {"weights": {"format": "ternary-2bit", "group": 8}}]
)
def test_the_plan_is_what_is_made(fields: dict[str, Any]) -> None:
    model = denoiser()
    short = stage(**fields, training=QUICK["training"] | {"steps": 2})
    expected = planned(model, [short])
    short.apply(model, {})

    def shapes(transformer: nn.Module) -> dict[str, Any]:
        return {name: (tuple(t.shape), t.dtype) for name, t in transformer.state_dict().items()}

    assert shapes(model.transformer) == shapes(expected)
    for name, module in expected.named_modules():
        if isinstance(module, QuantizedLinear):
            assert repr(module) == repr(model.transformer.get_submodule(name))


def test_refusals() -> None:
    with pytest.raises(InputError, match="K = 16 is not divisible by the group 12"):
        stage(weights={"format": "ternary", "group": 12}).apply(denoiser(), {})
    with pytest.raises(InputError, match=r"ternary\.training has no field \"epochs\""):
        parse_stage({"ternary": {"training": {"epochs": 3}}})
    with pytest.raises(InputError, match="holds vectors of 4 weights"):
        stage(weights={"format": "vq-256x4", "group": 16}).apply(denoiser(), {})
    spec = {"format": "fp4-e2m1", "group": 8, "scale_ratios": "power-of-two"}
    with pytest.raises(InputError, match=r"ternary\.modulation: scales move freely in training"):
        stage(modulation=spec).apply(denoiser(), {})
    broken = denoiser()
    with torch.no_grad():
        broken.transformer.transformer_blocks[1].attn1.to_k.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"transformer_blocks\.1\.attn1\.to_k.* NaN"):
        stage().apply(broken, {})
