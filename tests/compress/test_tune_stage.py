"""The stage ``tune``: twins of low-bit layers, what their updates learn, and that nothing is left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resume_cases import check_resumed
from tiny_dit import tiny_pipeline
from torch import Tensor, nn

from ditpress.calibrate.calls import record_calls
from ditpress.compress import Tune, check_order, parse_stage
from ditpress.compress.distill import tune_stage
from ditpress.compress.quantize.fake import FakeQuantizedLinear
from ditpress.compress.quantize.layer import LayerPlan, quantize_linear
from ditpress.compress.quantize.power_of_two import constrained
from ditpress.compress.quantize.spec import LowRankSpec, WeightSpec
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.quantize.student import harden, twins
from ditpress.compress.quantize.vector_linear import VectorLinear
from ditpress.compress.stage import RunContext
from ditpress.errors import InputError
from ditpress.kernels.formats import FORMATS
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load import Denoiser, load_denoiser
from ditpress.recipes.skeleton import planned
from ditpress.validate.paired import output_sqnr

QUICK: dict[str, Any] = {
    "samples": 8,
    "sampling_steps": 4,
    "batch": 4,
    "rank": 4,
    "save_every": 4,
    "training": {"steps": 60, "calls": 2, "learning_rate": 0.02},
}
INT4 = WeightSpec(format="int4", group=16)


def denoiser() -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=2))


CONTEXT = RunContext(original=denoiser)


def stage(**fields: Any) -> Tune:
    parsed = parse_stage({"tune": QUICK | fields})
    assert isinstance(parsed, Tune)
    return parsed


def rounded(**fields: Any) -> Denoiser:
    model = denoiser()
    Quantize(**{"weights": INT4, "modulation": INT4} | fields).apply(model, {})
    return model


def layers_of(model: Denoiser) -> dict[str, QuantizedLinear]:
    found = model.transformer.named_modules()
    return {name: module for name, module in found if isinstance(module, QuantizedLinear)}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def single(format: str, group: int | str, fold: bool = True) -> nn.Sequential:
    linear = nn.Linear(96, 64)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(0.0, 0.1, generator=generator())
    statistics = {}
    if format == "fp4":  # its tables are chosen by the error that they leave of the output
        statistics = {"input_second_moment": torch.eye(96)}
    spec = WeightSpec(format=format, group=group, fold_scales=fold)
    return nn.Sequential(quantize_linear(linear, LayerPlan(spec, "int8"), "layer", statistics))


CASES = [(name, 16 if f.vector_length == 1 else "channel") for name, f in FORMATS.items() if f.entries < 256]


@pytest.mark.parametrize(("format", "group"), [*CASES, ("int8", "channel"), ("int4", "channel")])
@pytest.mark.parametrize("rank", [None, 4])
def test_a_twin_starts_as_its_layer_to_the_bit_and_becomes_it_again(
    format: str, group: Any, rank: int | None
) -> None:
    model = single(format, group)
    layer = model[0]
    assert isinstance(layer, QuantizedLinear)
    (twin,) = twins(model, rank, generator()).values()
    assert model[0] is twin
    weight = twin.weight() if isinstance(twin, VectorLinear) else twin.effective_weight()
    assert torch.equal(weight, layer.dequantize())
    again = harden(twin)
    assert isinstance(again, QuantizedLinear)
    assert again.extra_repr() == layer.extra_repr()
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), layer.buffers(), strict=True))


def test_gradients_of_an_update_are_those_of_the_weight_it_changes() -> None:
    model = single("int4", 16, fold=False)
    scale = model[0].scale.double().numpy()
    (twin,) = twins(model, 4, generator()).values()
    assert isinstance(twin, FakeQuantizedLinear)
    assert twin.update is not None
    with torch.no_grad():
        twin.update.up.normal_(0.0, 2.0, generator=generator())
    twin.activation = "none"
    up, down = twin.update.up.requires_grad_(), twin.update.down.requires_grad_()
    x, c = torch.randn(7, 96, generator=generator()), torch.randn(7, 64, generator=generator())
    (twin(x) * c).sum().backward()
    # One step of the row's grid: int4 has 15 of them between -8 and 7.
    step = np.abs(scale).mean(axis=1, keepdims=True)
    gradient = c.double().numpy().T @ x.double().numpy()  # straight through the rounding
    wanted_up = (step * gradient) @ down.detach().double().numpy().T
    wanted_down = up.detach().double().numpy().T @ (step * gradient)
    assert up.grad is not None
    assert down.grad is not None
    np.testing.assert_allclose(up.grad.double().numpy(), wanted_up, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(down.grad.double().numpy(), wanted_down, rtol=1e-3, atol=1e-5)
    # Inside the quantizer: what it computes with is the nearest value of the sum, by hand in float64.
    latent = twin.weight.detach().double().numpy() + step * (up @ down).detach().double().numpy()
    s = np.repeat(scale, 16, axis=1)
    quotient = latent / s
    expected = np.clip(np.rint(quotient), -8, 7) * s
    clear = np.abs(quotient - np.floor(quotient) - 0.5) > 1e-3
    found = twin.effective_weight().detach().double().numpy()
    np.testing.assert_allclose(found[clear], expected[clear], rtol=1e-6)
    assert (np.abs(found - twin.weight.detach().double().numpy()) > s / 2).mean() > 0.3
    twin.merge()
    np.testing.assert_allclose(twin.weight.detach().double().numpy(), latent, rtol=1e-5, atol=1e-6)
    assert twin.update is None


MODELS: dict[str, dict[str, Any]] = {
    "int4": {},
    "branch": {"low_rank": LowRankSpec(rank=2, share=1.0, whiten=False)},
    "ternary": {"weights": WeightSpec(format="ternary", group="channel")},
    "codebooks": {"weights": WeightSpec(format="vq-64x2", group="channel")},
}


@pytest.mark.parametrize(
    ("kind", "rank"), [("int4", 4), ("int4", None), ("branch", 4), ("ternary", None), ("codebooks", 4)]
)
def test_tuning_lowers_the_error_and_leaves_nothing_behind(
    kind: str, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, model = denoiser(), rounded(**MODELS[kind])
    calls = record_calls(original, samples=6, steps=4, guidance=2.0, seed=77)
    before = output_sqnr(original.transformer, model.transformer, calls).total_db
    shapes = {name: (t.shape, t.dtype) for name, t in model.transformer.state_dict().items()}
    described = {name: layer.extra_repr() for name, layer in layers_of(model).items()}
    codes = {name: layer.codes.clone() for name, layer in layers_of(model).items()}
    trained: list[Tensor] = []

    def watch(layer: nn.Module) -> nn.Module:
        weight = layer.weight() if isinstance(layer, VectorLinear) else layer.effective_weight()
        trained.append(weight.detach().clone())
        return harden(layer)

    monkeypatch.setattr(tune_stage, "harden", watch)
    facts = stage(rank=rank).apply_in_run(model, {}, CONTEXT)
    after = output_sqnr(original.transformer, model.transformer, calls).total_db
    assert after > before + 1.5
    assert facts["loss"]["last"] < facts["loss"]["first"]
    state = model.transformer.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == shapes
    packed = layers_of(model)
    assert {name: layer.extra_repr() for name, layer in packed.items()} == described
    for layer, weight in zip(packed.values(), trained, strict=True):
        assert torch.equal(layer.dequantize(), weight)
    same = {name for name, layer in packed.items() if torch.equal(layer.codes, codes[name])}
    vectors = {name for name, layer in packed.items() if layer.format.startswith("vq")}
    assert vectors <= same < set(packed)
    assert not any(p.requires_grad or p.grad is not None for p in model.transformer.parameters())


def test_scales_that_differ_by_powers_of_two_stay() -> None:
    spec = WeightSpec(format="fp4-e2m1", group=8, scale_ratios="power-of-two")
    model = rounded(weights=spec)
    before = {name: layer.scale.clone() for name, layer in layers_of(model).items()}
    pinned = {name for name, scale in before.items() if constrained(scale)}
    assert pinned == {name for name, layer in layers_of(model).items() if layer.format == "fp4-e2m1"}
    assert pinned < set(before)
    stage(training=QUICK["training"] | {"steps": 5}).apply_in_run(model, {}, CONTEXT)
    stayed = {name for name, layer in layers_of(model).items() if torch.equal(layer.scale, before[name])}
    assert stayed == pinned


def test_constrained_scales() -> None:
    base = torch.tensor([[0.3], [0.7]])
    powers = base * torch.tensor([[1.0, 0.25, 2.0], [1.0, 1.0, 0.5]])
    assert constrained(powers)
    assert constrained(powers.half() * torch.tensor([[1.0, 0.0, 1.0]]).half())
    assert not constrained(powers * torch.tensor([1.0, 1.0, 1.1]))
    assert not constrained(base)
    assert constrained(torch.zeros(2, 3))


@pytest.mark.parametrize("fields", [{"scales": False}, {"vectors": True}])
def test_settings_say_what_learns(fields: dict[str, Any]) -> None:
    model = rounded(weights=WeightSpec(format="vq-64x2", group="channel"))
    before = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    stage(training=QUICK["training"] | {"steps": 5}, **fields).apply_in_run(model, {}, CONTEXT)
    after = model.transformer.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith(".scale") for name in changed) == fields.get("scales", True)
    assert ("proj_out_2.bias" in changed) == fields.get("vectors", False)
    assert "proj_out_2.weight" not in changed
    assert any(name.endswith(".codebook") for name in changed)


def test_resumed_tuning_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = QUICK["training"] | {"steps": 10, "ema": 0.9}

    def learn(work: Path | None) -> tuple[Denoiser, Any]:
        model = rounded()
        context = RunContext(original=denoiser, work=work)
        return model, stage(training=training).apply_in_run(model, {}, context)

    check_resumed(learn, tmp_path / "work", monkeypatch, steps=10, killed=7, saved=4)


def test_refusals() -> None:
    with pytest.raises(
        InputError, match="tune: the model has no low-bit layer; put a stage such as quantize"
    ):
        planned(denoiser(), [stage()])
    with pytest.raises(InputError, match="tune: there is no original to learn from"):
        stage().apply(rounded(), {})
    with pytest.raises(InputError, match="stage quantize must not come after tune; put quantize first"):
        check_order([parse_stage("tune"), parse_stage("quantize")])
    check_order([parse_stage("quantize"), parse_stage("tune")])
