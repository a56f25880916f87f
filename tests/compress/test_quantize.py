"""The stage ``quantize``: what it asks of the formats and what it makes of the layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_dit import tiny_pipeline

from ditpress.calibrate import Calibration, Call, Want, record_calls
from ditpress.compress import parse_stage
from ditpress.compress.quantize.fit import fit_weight
from ditpress.compress.quantize.layer import LayerPlan, quantize_linear
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.quantize.stage import Quantize
from ditpress.errors import InputError, StageError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack
from ditpress.kernels.wrap import LowRankLinear, TransformedLinear, input_weight
from ditpress.load import Denoiser, Role, load_denoiser
from ditpress.load.anatomy import plain_name
from ditpress.load.quantization_config import DitpressConfig
from ditpress.recipes.skeleton import planned, skeleton
from ditpress.validate.paired import output_sqnr


@pytest.fixture
def denoiser() -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=2))


def stage(**weights: object) -> Quantize:
    parsed = parse_stage({"quantize": {"weights": weights}})
    assert isinstance(parsed, Quantize)
    return parsed


@pytest.mark.parametrize("name", ["ternary", "ternary-2bit"])
@pytest.mark.parametrize("group", [8, "channel"])
def test_ternary_layers_hold_the_nearest_of_three_values(
    denoiser: Denoiser, name: str, group: int | str
) -> None:
    original = copy.deepcopy(denoiser.transformer)
    stage(format=name, group=group, fold_scales=False).apply(denoiser, {})
    layers = {
        n: m
        for n, m in denoiser.transformer.named_modules()
        if isinstance(m, QuantizedLinear) and m.format == name
    }
    assert layers
    for layer_name, layer in layers.items():
        weight = original.get_submodule(layer_name).weight.detach().float()
        groups = weight.reshape(layer.out_features, -1, layer.group_size)
        scale = layer.scale.float()[..., None]
        nearest = torch.where(groups.abs() > scale / 2, groups.sign(), 0.0) * scale
        torch.testing.assert_close(layer.dequantize(), nearest.reshape(weight.shape))
        assert 0.2 < float((layer.dequantize() == 0).float().mean()) < 0.7


def test_scales_are_folded_where_it_matters(denoiser: Denoiser) -> None:
    folded = stage(format="int4", group=8, fold_scales=True)
    folds = folding(folded, denoiser)
    roles = denoiser.anatomy.linears(denoiser.transformer)
    assert {fold for n, fold in folds.items() if roles[n] is Role.MODULATION} == {False}
    assert {fold for n, fold in folds.items() if roles[n] is not Role.MODULATION} == {True}
    for plain in (
        stage(format="int4", group="channel", fold_scales=True),
        stage(format="int4", group=8, fold_scales=False),
        folded.model_copy(update={"activations": "none"}),
    ):
        assert not any(folding(plain, denoiser).values())
    folded.apply(denoiser, {})
    for name, fold in folds.items():
        assert denoiser.transformer.get_submodule(name).fold_scales == fold
    written = DitpressConfig.of(denoiser.transformer).layers
    assert all(("fold_scales" in written[name]) == fold for name, fold in folds.items())


def folding(quantize: Quantize, denoiser: Denoiser) -> dict[str, bool]:
    """Whether the scales of each layer are folded."""
    transformer = denoiser.transformer
    return {
        name: plan.fold_scales(transformer.get_submodule(name).in_features)
        for name, plan in quantize.plans(denoiser, transformer).items()
    }


@pytest.mark.parametrize("name", ["vq-256x4", "vq-64x2"])
def test_vector_formats_in_groups_are_refused_before_anything_changes(denoiser: Denoiser, name: str) -> None:
    before = copy.deepcopy(denoiser.transformer.state_dict())
    vectors = stage(format=name, group=8)
    for call in (
        lambda denoiser: vectors.plan(denoiser, skeleton(denoiser.transformer)),
        lambda denoiser: vectors.apply(denoiser, {}),
    ):
        with pytest.raises(
            InputError, match=rf"format {name} has one scale per output row; expected group: channel"
        ):
            call(denoiser)
    after = denoiser.transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_setting_is_yes_or_no() -> None:
    with pytest.raises(InputError, match=r"quantize\.weights\.fold_scales: .* boolean, got 'fast'"):
        stage(format="int4", group=8, fold_scales="fast")


FULL: dict[str, Any] = {
    "weights": {"format": "int4", "group": 8, "rounding": "gptq"},
    "activations": "int4",
    "low_rank": {"rank": 3, "share": 1.0, "method": "svdquant", "iterations": 5},
    "layers": {
        "*.0.attn1.to_v": {"format": "int8", "group": "channel"},
        "*.1.attn1.to_*": "keep",
        "*.1.attn1.to_q": {"format": "nf4", "group": 16},
    },
}


def parsed(**settings: object) -> Quantize:
    quantize = parse_stage({"quantize": FULL | settings})
    assert isinstance(quantize, Quantize)
    return quantize


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return record_calls(load_denoiser(tiny_pipeline(seed=2)), samples=3, steps=6, guidance=2.0, seed=0)


@pytest.mark.parametrize("sequential", [True, False])
def test_what_is_made_is_what_was_planned(denoiser: Denoiser, calls: list[Call], sequential: bool) -> None:
    quantize = parsed(sequential=sequential)
    original = copy.deepcopy(denoiser.transformer)
    outline = planned(denoiser, [quantize])
    quantize.apply_calls(denoiser, {}, calls)
    made = denoiser.transformer
    shapes = [
        {name: (t.shape, t.dtype) for name, t in model.state_dict().items()} for model in (outline, made)
    ]
    assert shapes[0] == shapes[1]
    assert DitpressConfig.of(outline).to_dict() == DitpressConfig.of(made).to_dict()
    linears = {plain_name(name): made.get_submodule(name) for name in denoiser.anatomy.linears(made)}
    for name, module in linears.items():
        outer = made.get_submodule(name)
        if ".1.attn1.to_" in name and not name.endswith("to_q"):
            assert isinstance(module, torch.nn.Linear)
            assert torch.equal(module.weight, original.get_submodule(name).weight)
        elif name.endswith("0.attn1.to_v"):
            assert outer.format == "int8"  # no branch: the bits are enough
        elif name.endswith("ff.net.2"):
            assert isinstance(outer, TransformedLinear)
            assert isinstance(outer.linear, LowRankLinear)
            assert (module.activation, outer.linear.down.out_features) == ("uint4", 3)
        elif name.endswith(("to_q", "to_k", "to_out.0", "proj")) and ".attn1" in name:
            assert isinstance(outer, LowRankLinear)
            assert module.activation == "int4"
            assert (outer.down.activation, outer.up.format) == ("int8", "int8")
    assert linears["transformer_blocks.1.attn1.to_q"].format == "nf4"


def test_what_stands_outside_the_blocks_may_be_stored_small(denoiser: Denoiser, calls: list[Call]) -> None:
    """Embedders and last layers: 8 bits a weight, inputs as they are, no worse than plain rounding."""
    original = copy.deepcopy(denoiser.transformer)
    parsed(layers={}, low_rank=None, keep=[]).apply_calls(denoiser, {}, calls)
    ends = 0
    for name, role in denoiser.anatomy.linears(denoiser.transformer).items():
        if role not in (Role.EMBEDDER, Role.FINAL, Role.OTHER):
            continue
        ends += 1
        stored = denoiser.transformer.get_submodule(name)
        assert (stored.format, stored.activation) == ("int8", "none")
        weight = original.get_submodule(name).weight.detach().double()
        step = weight.abs().amax(1, keepdim=True) / 127
        error = (stored.dequantize().double() - weight).square().sum(1)
        assert bool((error <= (weight - step * (weight / step).round()).square().sum(1) * 1.01).all())
    assert ends >= 4  # two of the timestep, two at the end
    assert output_sqnr(original, denoiser.transformer, calls[:2]).total_db > 15.0


def loud() -> Denoiser:
    """A tiny DiT, wide enough for branches, whose blocks add more than they get: errors spread."""
    denoiser = load_denoiser(tiny_pipeline(seed=3, attention_head_dim=32))
    with torch.no_grad():
        for parameter in denoiser.transformer.transformer_blocks.parameters():
            parameter.mul_(2.0)
    return denoiser


@pytest.fixture(scope="module")
def loud_calls() -> list[Call]:
    """1,536 tokens: far more than the 256 channels that they are to tell apart."""
    return record_calls(loud(), samples=16, steps=12, guidance=2.0, seed=0)


def test_every_layer_is_fitted_to_the_inputs_it_will_get(loud_calls: list[Call]) -> None:
    """The codes of a layer in the second block, from the second moment of what the first gives when quantized
    (sequential) or not: collected here by running the whole model."""
    settings: dict[str, Any] = {"low_rank": None, "activations": "int8", "layers": {}}
    name = "transformer_blocks.1.ff.net.2"
    want = Want(name, "input_second_moment")
    codes = {}
    for sequential in (True, False):
        quantized, reference = loud(), loud().transformer
        quantize = parsed(sequential=sequential, **settings)
        quantize.apply_calls(quantized, {}, loud_calls)
        codes[sequential] = quantized.transformer.get_submodule(name).codes
        weight = reference.get_submodule(name).weight
        if sequential:
            reference.transformer_blocks[0] = quantized.transformer.transformer_blocks[0]
        moment = Calibration(loud_calls).collect(reference, [want])[want]
        fitted = fit_weight(weight, quantize.weights, name, moment)
        assert torch.equal(pack(fitted.codes, 16), codes[sequential])
    assert not torch.equal(codes[True], codes[False])


def test_the_unsigned_shift_preserves_the_function(denoiser: Denoiser, calls: list[Call]) -> None:
    quantize = parsed(layers={}, low_rank={"rank": 2, "share": 1.0})
    name = "transformer_blocks.0.ff.net.2"
    want = Want(name, "input_min")
    lowest = Calibration(calls).collect(denoiser.transformer, [want])[want]
    linear = copy.deepcopy(denoiser.transformer.get_submodule(name))
    quantize.apply_calls(denoiser, {}, calls)
    shifted = denoiser.transformer.get_submodule(name)
    value = float(shifted.transform.value)
    assert 0.0 < value <= 0.18  # GELU is never below -0.17
    assert value == -float(lowest.min())
    # Without rounding of inputs the shift and its share of the bias cancel.
    weight = input_weight(shifted.linear).double()
    x = torch.randn(7, linear.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x @ weight.t() + linear.bias.double()
    got = (x + value) @ weight.t() + shifted.linear.linear.bias.double()
    assert float((got - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_what_does_not_follow_a_gelu_is_not_shifted() -> None:
    gated = load_denoiser(tiny_pipeline(seed=2, activation_fn="geglu"))
    plans = parsed(layers={}).plans(gated, gated.transformer)
    assert {plan.activation for name, plan in plans.items() if name.endswith("ff.net.2")} == {"int4"}
    assert not any(plan.shift for plan in plans.values())


def test_each_part_lowers_the_error_of_the_output(loud_calls: list[Call]) -> None:
    """Nearest, and with what is added one after the other, on calls that nothing was fitted to."""
    fresh = record_calls(loud(), samples=4, steps=5, guidance=2.0, seed=99)
    none: dict[str, Any] = {"layers": {}, "low_rank": None, "activations": "none"}
    nearest = {"format": "int4", "group": 16}
    gptq = nearest | {"rounding": "gptq"}
    branch = {"rank": 8, "share": 1.0, "iterations": 20, "method": "svdquant"}
    sqnr = []
    for settings in (
        none | {"weights": nearest},
        none | {"weights": nearest, "low_rank": branch},
        none | {"weights": gptq},
        none | {"weights": gptq, "low_rank": branch},
    ):
        denoiser = loud()
        parsed(**settings).apply_calls(denoiser, {}, loud_calls)
        sqnr.append(output_sqnr(loud().transformer, denoiser.transformer, fresh).total_db)
    plain, branched, rounded, both = sqnr
    assert min(branched, rounded) > plain + 1.0
    assert both > max(branched, rounded)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": {"*.attn9.*": "keep"}}, r'quantize\.layers: "\*\.attn9\.\*" matches no layer; closest: '),
        (
            {"layers": {"*.0.*to_q": {"format": "int4", "group": 48}}},
            r"blocks\.0\.attn1\.to_q: K = 16 is not",
        ),
        ({"low_rank": {"rank": 16, "share": 1.0}}, r"to_q: a branch of rank 16 is no smaller than the layer"),
    ],
)
def test_settings_that_the_model_cannot_take_change_nothing(
    denoiser: Denoiser, calls: list[Call], settings: dict[str, Any], message: str
) -> None:
    before = copy.deepcopy(denoiser.transformer.state_dict())
    for attempt in (
        lambda: parsed(**settings).plan(denoiser, skeleton(denoiser.transformer)),
        lambda: parsed(**settings).apply_calls(denoiser, {}, calls),
    ):
        with pytest.raises(InputError, match=message):
            attempt()
    after = denoiser.transformer.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_calibration_that_says_too_little_is_refused(denoiser: Denoiser, calls: list[Call]) -> None:
    with pytest.raises(InputError, match=r"recorded calls at 1 timesteps.*raise calibration\.steps"):
        parsed().apply_calls(denoiser, {}, calls[:1])
    with pytest.raises(StageError, match=r"to_q: needs statistics of its inputs"):
        parsed().apply(denoiser, {})
    broken = [Call(call.timestep, copy.deepcopy(call.kwargs)) for call in calls]
    broken[2].kwargs["hidden_states"][0] = float("nan")
    with pytest.raises(InputError, match=r"blocks\.0\.\S+: its inputs are NaN or infinite in calibration"):
        parsed().apply_calls(denoiser, {}, broken)


def test_constant_inputs_are_refused() -> None:
    row = torch.randn(16, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.Linear(16, 8)
    plan = LayerPlan(WeightSpec(format="int4", group=8, rounding="gptq"), "int8")
    with pytest.raises(InputError, match="fc: its inputs are constant in calibration"):
        quantize_linear(linear, plan, "fc", {"input_second_moment": torch.outer(row, row)})
