"""The stage ``mixed``: errors one layer at a time, budgets kept in stored bytes, frontiers that fall."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from tiny_dit import tiny_pipeline

from ditpress.calibrate.calls import record_calls
from ditpress.compress.allocate.budget import parse_bytes
from ditpress.compress.allocate.frontier import Point, Problem, monotone, spread_points
from ditpress.compress.allocate.sensitivity import OutputError, replaced, sensitivity
from ditpress.compress.allocate.stage import Mixed
from ditpress.compress.stage import parse_stage
from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.denoiser import load_denoiser
from ditpress.recipes.skeleton import planned, skeleton
from ditpress.validate.size import size_of

CANDIDATES = [
    {"format": "ternary", "group": 64},
    {"format": "int4", "group": 64},
    {"format": "int8", "group": "channel"},
]


@pytest.fixture
def denoiser():
    """Its embedders and last layer, which stay, take 5.9 bits a parameter of the whole."""
    return load_denoiser(tiny_pipeline(num_attention_heads=4, attention_head_dim=16))


@pytest.fixture
def calls(denoiser):
    return record_calls(denoiser, samples=2, steps=3, guidance=1.0, seed=0)


def mixed(**fields):
    return parse_stage({"mixed": {"candidates": CANDIDATES, "calls": 3, "points": 3, **fields}})


def apply(stage, denoiser, calls):
    before = copy.deepcopy(denoiser.transformer)
    found = stage.apply_calls(denoiser, {}, calls)["frontier"]
    return size_of(before, denoiser.transformer), found


@pytest.mark.parametrize("bits", [8.0, 9.0, 11.0])
def test_the_budget_in_bits_is_kept(bits, denoiser, calls):
    size, found = apply(mixed(bits=bits), denoiser, calls)
    assert size.effective_bits <= bits
    assert found["chosen"]["bytes"] == size.compressed_bytes
    assert found["chosen"]["bits"] == pytest.approx(size.effective_bits)


def test_the_budget_in_bytes_is_kept_to_the_byte(denoiser, calls):
    size, _ = apply(mixed(bits=9.0), copied(denoiser), calls)
    exact, found = apply(mixed(budget=f"{size.compressed_bytes}B"), copied(denoiser), calls)
    assert exact.compressed_bytes <= size.compressed_bytes
    assert found["budget_bytes"] == size.compressed_bytes
    less, _ = apply(mixed(budget=f"{exact.compressed_bytes - 1}B"), copied(denoiser), calls)
    assert less.compressed_bytes < exact.compressed_bytes


def copied(denoiser):
    return denoiser.with_transformer(copy.deepcopy(denoiser.transformer))


def test_every_layer_has_one_of_the_candidates_and_more_bits_give_less_error(denoiser, calls):
    errors = []
    for bits in (7.7, 9.5, 12.0):
        model = copied(denoiser)
        _, found = apply(mixed(bits=bits), model, calls)
        formats = {m.format for m in model.transformer.modules() if isinstance(m, QuantizedLinear)}
        assert formats <= {"ternary", "int4", "int8"}
        assert found["chosen"]["layers"]
        error = OutputError(denoiser.transformer, calls).measure(model.transformer)
        assert found["chosen"]["measured_db"] == pytest.approx(-10 * torch.tensor(error).log10().item())
        errors.append(error)
    assert errors[0] > errors[1] > errors[2]


def test_the_frontier_is_monotone(denoiser, calls):
    _, found = apply(mixed(bits=9.0), denoiser, calls)
    for points, figure in ((found["predicted"], "predicted_db"), (found["measured"], "measured_db")):
        assert len(points) > 2
        assert all(a["bytes"] < b["bytes"] and a[figure] < b[figure] for a, b in pairwise(points))


def test_no_uniform_allocation_within_the_budget_measures_better(denoiser, calls):
    """int4 everywhere is one of the contenders; so what is chosen within its size is as good or better."""
    quantized = copied(denoiser)
    uniform = parse_stage(
        {"quantize": {"weights": CANDIDATES[1], "modulation": CANDIDATES[1], "activations": "int8"}}
    )
    uniform.apply(quantized, {})
    size = size_of(denoiser.transformer, quantized.transformer)
    limit = OutputError(denoiser.transformer, calls).measure(quantized.transformer)
    model = copied(denoiser)
    apply(mixed(budget=f"{size.compressed_bytes}B"), model, calls)
    assert OutputError(denoiser.transformer, calls).measure(model.transformer) <= limit


def test_the_plan_is_within_the_budget_and_names_the_same_layers(denoiser, calls):
    stage = mixed(bits=9.0)
    guess = planned(denoiser, (stage,))
    assert size_of(skeleton(denoiser.transformer), guess).effective_bits <= 9.0
    apply(stage, denoiser, calls)

    def low(model):
        return {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}

    assert low(guess) == low(denoiser.transformer)


def test_sensitivity_is_the_error_with_one_layer_replaced(denoiser, calls):
    """Against the same in plain PyTorch: one float weight changed, all outputs compared in float64."""
    transformer = denoiser.transformer
    name = "transformer_blocks.0.attn1.to_v"
    linear = transformer.get_submodule(name)
    changed = copy.deepcopy(linear)
    changed.weight.data.mul_(1.25)
    error = OutputError(transformer, calls)
    found = sensitivity(transformer, error, {name: {7: lambda: changed}})
    assert transformer.get_submodule(name) is linear
    by_timestep: dict[float, list[float]] = {}
    for call in calls:
        with torch.no_grad():
            y = transformer(**call.kwargs)[0].double()
            with replaced(transformer, {name: lambda: changed}):
                y_hat = transformer(**call.kwargs)[0].double()
        sums = by_timestep.setdefault(call.timestep, [0.0, 0.0])
        sums[0] += float((y - y_hat).square().sum())
        sums[1] += float(y.square().sum())
    expected = sum(noise / signal for noise, signal in by_timestep.values()) / len(by_timestep)
    assert found == {name: {7: pytest.approx(expected, rel=1e-9)}}


def test_a_layer_is_put_back_when_its_module_cannot_be_made(denoiser):
    transformer = denoiser.transformer
    before = list(transformer.modules())

    def refuse():
        raise InputError("no")

    names = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k"]
    makes = {names[0]: lambda: torch.nn.Linear(64, 64), names[1]: refuse}
    with pytest.raises(InputError, match="no"), replaced(transformer, makes):
        pass
    assert all(a is b for a, b in zip(before, transformer.modules(), strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either bits or budget, neither is given"),
        ({"bits": 3.0, "budget": "1MB"}, "either bits or budget, bits 3.0 and budget 1MB"),
        ({"budget": "0.3"}, "expected a size such as 0.3GB"),
        ({"budget": "3 apples"}, "expected a size such as 0.3GB"),
        ({"bits": 4.0, "candidates": CANDIDATES[:1]}, "mixed.candidates"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        mixed(**fields)


def test_a_budget_too_small_says_what_is_possible(denoiser, calls):
    least = mixed(bits=0.5)
    with pytest.raises(
        InputError, match=r"0.5 bits is less than the smallest .* bits a parameter or .* bytes"
    ):
        planned(denoiser, (least,))
    with pytest.raises(InputError, match="less than the smallest"):
        least.apply_calls(denoiser, {}, calls)
    assert not any(isinstance(module, QuantizedLinear) for module in denoiser.transformer.modules())


def test_a_pattern_and_a_group_that_do_not_fit(denoiser, calls):
    with pytest.raises(InputError, match=r'mixed.skip: "blocks.*" matches no layer; closest: '):
        planned(denoiser, (mixed(bits=6.0, skip=["blocks.*"]),))
    odd = [{"format": "int4", "group": 48}, {"format": "ternary", "group": 48}]
    with pytest.raises(InputError, match="not divisible by the group 48"):
        planned(denoiser, (mixed(bits=6.0, candidates=odd),))
    with pytest.raises(InputError, match="needs recorded calls"):
        mixed(bits=6.0).apply_calls(denoiser, {}, [])


def test_sizes():
    assert parse_bytes("0.3GB") == 300_000_000
    assert parse_bytes("1.5 MiB") == 1_572_864
    assert parse_bytes("7B") == 7


def test_points_of_a_frontier():
    points = [Point({"a": 0}, bits, 1.0 / bits, 1.0 / bits) for bits in range(1, 101)]
    assert [point.bits for point in spread_points(points, 3)] == [1, 50, 100]
    assert spread_points(points, 200) == points
    worse = Point({"a": 1}, 50, 0.0, 1.0)
    assert monotone([*points, worse]) == points


def test_contenders_keep_the_budget():
    costs = {"a": {0: 10, 1: 20}, "b": {0: 10, 1: 30}}
    errors = {"a": {0: 1.0, 1: 0.1}, "b": {0: 2.0, 1: 0.2}}
    problem = Problem(costs, errors, other_bits=5)
    assert problem.contenders(24) == []
    assert {tuple(point.picks.values()) for point in problem.contenders(35)} == {(1, 0)}
    best = min(problem.contenders(45), key=lambda point: point.predicted)
    assert dict(best.picks) == {"a": 0, "b": 1}
    assert best.bits == 45
    assert isinstance(mixed(bits=4.0), Mixed)
