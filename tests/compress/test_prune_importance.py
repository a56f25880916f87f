"""Ratings against Jacobians and finite differences in float64; rankings against exhaustive search."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from family_cases import calls_of, make
from prune_cases import doubled, run
from torch import Tensor, nn

from ditpress.calibrate.calls import Call
from ditpress.compress.prune import importance
from ditpress.compress.prune.importance import gradient_scores, magnitude_scores, random_scores, random_signs
from ditpress.compress.prune.ranking import allot, best, keep_count
from ditpress.compress.prune.units import Units, all_units
from ditpress.errors import StageError
from ditpress.load.widths import width_groups

OUTPUTS = 64  # 1 image of 1 x 8 x 8, a power of two


def exact_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signs are the rows of a Hadamard matrix H in turn: the mean over 64 probes of (h . a)² is |a|²."""
    rows = torch.ones(1, 1)
    while len(rows) < OUTPUTS:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    turn = itertools.cycle(rows)
    monkeypatch.setattr(importance, "random_signs", lambda shape, generator: next(turn).view(*shape))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_signs(monkeypatch)


def one_image() -> tuple[Any, list[Call]]:
    model, inputs = make("dit")
    model, inputs = doubled(model, {name: value[:1] for name, value in inputs.items()})
    return model, calls_of(inputs, 2)


def units_of(model: nn.Module) -> list[Units]:
    return [one for group in width_groups(model) for one in all_units(group)]


def jacobian(model: Any, names: list[str], call: Call) -> dict[str, Tensor]:
    """∂y_o/∂w of every tensor in ``names``, [outputs, *shape], by one reverse pass per output."""
    tensors = [model.get_parameter(name).requires_grad_(True) for name in names]
    output = model(**call.kwargs, return_dict=False)[0].flatten()
    rows = [torch.autograd.grad(value, tensors, retain_graph=True) for value in output]
    for tensor in tensors:
        tensor.requires_grad_(False)
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("recompute", [False, True])
def test_hessian_is_the_diagonal_of_gauss_newton(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    if recompute:
        monkeypatch.setattr(importance, "RECOMPUTE_FROM", 1)
    model, calls = one_image()
    units = units_of(model)
    scores = gradient_scores(model, units, calls, "hessian", OUTPUTS, 0)
    found: dict[tuple[str, str], Tensor] = {
        (one.name, one.kind): score for one, score in zip(units, scores, strict=True)
    }
    block = "transformer_blocks.1"
    reader, out = f"{block}.ff.net.2.weight", f"{block}.attn1.to_out.0.weight"
    query, bias = f"{block}.attn1.to_q.weight", f"{block}.attn1.to_q.bias"
    inner = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "ff.net.0.proj")
    read = [f"transformer_blocks.{i}.{name}.weight" for i in range(2) for name in inner]
    read.append("proj_out_2.weight")
    expected: dict[str, Tensor] = {}
    for call in calls:
        rows = jacobian(model, list({reader, out, query, bias, *read}), call)
        per_weight = {
            name: (rows[name] * model.get_parameter(name).detach()).square().sum(0) / len(calls)
            for name in rows
        }
        for kind, value in (
            ("hidden", per_weight[reader].sum(0)),
            ("values", per_weight[out].sum(0)),
            ("heads", per_weight[out].sum(0).view(2, 8).sum(1)),
            ("queries", per_weight[query].sum(1) + per_weight[bias]),
            ("residual", torch.cat([per_weight[name] for name in read]).sum(0)),
        ):
            expected[kind] = expected.get(kind, torch.zeros_like(value)) + value
    for kind, value in expected.items():
        name = {"hidden": f"{block}.ff", "residual": "pos_embed"}.get(kind, f"{block}.attn1")
        torch.testing.assert_close(found[name, kind], value, rtol=1e-9, atol=0)
    assert all(not parameter.requires_grad for parameter in model.parameters())
    assert not model.gradient_checkpointing


@pytest.mark.usefixtures("exact")
def test_taylor_is_the_change_of_the_output() -> None:
    """The output with a small share of a unit removed, in float64, against the unit's score."""
    model, calls = one_image()
    units = units_of(model)
    scores = gradient_scores(model, units, calls, "taylor", OUTPUTS, 0)
    share = 1e-5
    checked = set()
    for one, score in zip(units, scores, strict=True):
        for unit in sorted({0, one.count - 1}):
            part = slice(one.start + unit * one.size, one.start + (unit + 1) * one.size)
            total = 0.0
            for call in calls:
                outputs = []
                for sign in (1, -1):
                    changed = copy.deepcopy(model)
                    for name in one.gates:
                        linear = changed.get_submodule(name)
                        if one.kind == "queries":
                            linear.weight[part] *= 1 + sign * share
                            linear.bias[part] *= 1 + sign * share
                        else:
                            linear.weight[:, part] *= 1 + sign * share
                    outputs.append(run(changed, call.kwargs))
                total += float(((outputs[0] - outputs[1]) / (2 * share)).square().sum()) / len(calls)
            assert float(score[unit]) == pytest.approx(total, rel=1e-5)
            checked.add(one.kind)
    assert checked == {"heads", "queries", "values", "hidden", "residual"}


def test_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (random_signs((4, 1000), generator) for _ in range(2))
    assert set(first.flatten().tolist()) == {-1.0, 1.0}
    assert not torch.equal(first, second)
    assert abs(float(first.mean())) < 4 / math.sqrt(4000)


def test_few_random_directions_are_near_the_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = one_image()
    units = units_of(model)
    found = gradient_scores(model, units, calls, "taylor", 200, 1)
    again = gradient_scores(model, units, calls, "taylor", 200, 1)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    with monkeypatch.context() as patched:
        exact_signs(patched)
        expected = gradient_scores(model, units, calls, "taylor", OUTPUTS, 0)
    ratio = torch.cat(found) / torch.cat(expected)
    # 400 directions in all: each ratio has a standard deviation of at most sqrt(2 / 400).
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.1)
    assert float((ratio - 1).abs().max()) < 6 * math.sqrt(2 / 400)


def test_magnitude_counts_every_weight_of_the_unit() -> None:
    model, _ = one_image()
    units = units_of(model)
    scores = magnitude_scores(model, units)
    found: dict[tuple[str, str], Tensor] = {
        (one.name, one.kind): score for one, score in zip(units, scores, strict=True)
    }
    block = model.transformer_blocks[0]
    attention, name = block.attn1, "transformer_blocks.0"
    rows = {
        part: torch.cat([linear.weight, linear.bias[:, None]], 1)
        for part, linear in (
            ("q", attention.to_q),
            ("k", attention.to_k),
            ("v", attention.to_v),
            ("up", block.ff.net[0].proj),
        )
    }
    out, down = attention.to_out[0].weight, block.ff.net[2].weight
    head = torch.cat([rows[part][8:].flatten() for part in "qkv"] + [out[:, 8:].flatten()])
    assert float(found[f"{name}.attn1", "heads"][1]) == pytest.approx(float(head.norm()), rel=1e-12)
    for kind, parts in (
        ("queries", (rows["q"][5], rows["k"][5])),
        ("values", (rows["v"][5], out[:, 5])),
    ):
        assert float(found[f"{name}.attn1", kind][5]) == pytest.approx(
            float(torch.cat(parts).norm()), rel=1e-12
        )
    unit = torch.cat([rows["up"][7], down[:, 7]])
    assert float(found[f"{name}.ff", "hidden"][7]) == pytest.approx(float(unit.norm()), rel=1e-12)
    parts = [model.pos_embed.proj.weight[5], model.pos_embed.proj.bias[5]]
    parts += [model.proj_out_1.weight[5::16], model.proj_out_1.bias[5::16], model.proj_out_2.weight[:, 5]]
    for block in model.transformer_blocks:
        written = (block.norm1.linear, block.attn1.to_out[0], block.ff.net[2])
        read = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.ff.net[0].proj)
        parts += [part[5::16] for linear in written for part in (linear.weight, linear.bias)]
        parts += [linear.weight[:, 5] for linear in read]
    channel = torch.cat([part.flatten() for part in parts])
    assert float(found["pos_embed", "residual"][5]) == pytest.approx(float(channel.norm()), rel=1e-12)


def test_gradients_that_are_not_finite_are_named() -> None:
    model, calls = one_image()
    calls[0].kwargs["hidden_states"] = calls[0].kwargs["hidden_states"] * math.nan
    with pytest.raises(StageError, match="its gradients are NaN"):
        gradient_scores(model, units_of(model), calls, "hessian", 1, 0)


@pytest.mark.parametrize(
    ("count", "ratio", "round_to", "expected"),
    [
        (64, 0.0, 48, 64),
        (64, 0.5, 8, 32),
        (4608, 0.5, 64, 2304),
        (3, 0.5, 1, 2),  # a half stays
        (10, 0.9, 1, 1),
        (10, 0.7, 1, 3),
        (10, 0.96, 1, 0),
        (96, 0.5, 64, 64),
        (96, 0.1, 64, 64),
        (100, 0.01, 64, 100),
        (64, 0.9, 64, 0),
    ],
)
def test_counts(count: int, ratio: float, round_to: int, expected: int) -> None:
    assert keep_count(count, ratio, round_to) == expected


def test_the_best_stay_and_of_equals_the_first() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert best(scores, 2).tolist() == [[False, True, False, True], [True, True, False, False]]


@pytest.mark.parametrize("round_to", [1, 2])
def test_allotment_by_exhaustive_search(round_to: int) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(size, generator=generator, dtype=torch.float64) ** 4 for size in (6, 4, 8)]
        keeps = [4, 2, 4]
        found = allot(scores, keeps, round_to)
        choices = itertools.product(*(range(round_to, len(own) + 1, round_to) for own in scores))

        def kept(counts: tuple[int, ...], scores: list[Tensor] = scores) -> float:
            parts = zip(scores, counts, strict=True)
            return sum(float(own.sort(descending=True).values[:count].sum()) for own, count in parts)

        most = max((counts for counts in choices if sum(counts) == sum(keeps)), key=kept)
        assert tuple(found) == most


def test_random_scores_have_a_number_for_every_unit() -> None:
    model, _ = one_image()
    units = units_of(model)
    scores = random_scores(units, 0)
    assert [len(score) for score in scores] == [one.count for one in units]
    assert len({float(value) for score in scores for value in score}) == sum(one.count for one in units)
