"""The stage ``vq``: what it makes of a tiny model, that it learns, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_dit import tiny_pipeline

from ditpress.calibrate.calls import Call, record_calls
from ditpress.compress import parse_stage
from ditpress.compress.quantize import vector_run
from ditpress.compress.quantize.vq_stage import VectorQuantize
from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load import Denoiser, Role, load_denoiser
from ditpress.recipes.skeleton import skeleton
from ditpress.validate.paired import output_sqnr

FULL: dict[str, Any] = {
    "bits": 3,
    "iterations": 10,
    "rows": 4,
    "blocks": {"steps": 30},
    "finetune": {"steps": 60, "calls": 4, "learning_rate": 5e-3},
}


def model(seed: int = 2) -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=seed, attention_head_dim=16))


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return record_calls(model(), samples=6, steps=6, guidance=2.0, seed=0)


@pytest.fixture(scope="module")
def held_out() -> list[Call]:
    return record_calls(model(), samples=4, steps=4, guidance=2.0, seed=100)


def stage(**fields: Any) -> VectorQuantize:
    parsed = parse_stage({"vq": fields})
    assert isinstance(parsed, VectorQuantize)
    return parsed


def applied(calls: list[Call], **fields: Any) -> Denoiser:
    denoiser = model()
    stage(**fields).apply_calls(denoiser, {}, calls)
    return denoiser


def quality(denoiser: Denoiser, held_out: list[Call]) -> float:
    return output_sqnr(model().transformer, denoiser.transformer, held_out).total_db


def test_linears_of_the_blocks_and_the_modulation_become_codebooks(calls: list[Call]) -> None:
    denoiser = applied(calls, bits=3, modulation_bits=2, blocks=None, finetune=None, iterations=3)
    roles = denoiser.anatomy.linears(denoiser.transformer)
    kinds: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for name, role in roles.items():
        layer = denoiser.transformer.get_submodule(name)
        if role in (Role.EMBEDDER, Role.FINAL, Role.OTHER):
            assert not isinstance(layer, QuantizedLinear)
            continue
        assert isinstance(layer, QuantizedLinear)
        kinds[role is Role.MODULATION].add((layer.format, layer.activation))
        assert layer.scale.shape == (layer.out_features, 1)
    assert kinds == {False: {("vq-64x2", "int8")}, True: {("vq-256x4", "none")}}


def test_the_plan_has_the_structure_of_the_result(calls: list[Call]) -> None:
    wanted = stage(bits=3, blocks=None, finetune=None, iterations=2)
    denoiser = model()
    planned = skeleton(denoiser.transformer)
    wanted.plan(denoiser, planned)
    wanted.apply_calls(denoiser, {}, calls)
    shapes = {
        name: (tensor.shape, tensor.dtype) for name, tensor in denoiser.transformer.state_dict().items()
    }
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in planned.state_dict().items()}
    layer = denoiser.transformer.transformer_blocks[0].ff.net[2]
    codes = layer.out_features * layer.in_features * 3
    codebook, scales, bias = 64 * 2 * 8, 32 * layer.out_features, 32 * layer.out_features
    assert layer.stored_bits() == codes + codebook + scales + bias


def test_every_step_makes_unseen_outputs_better(calls: list[Call], held_out: list[Call]) -> None:
    plain = quality(applied(calls, **FULL | {"blocks": None, "finetune": None}), held_out)
    blocks = quality(applied(calls, **FULL | {"finetune": None}), held_out)
    both = quality(applied(calls, **FULL), held_out)
    assert blocks > plain + 1.0
    assert both > blocks + 0.2


def test_candidates_change_assignments(calls: list[Call]) -> None:
    published = FULL | {"finetune": None, "rounding": "nearest", "weigh_channels": False}
    fixed, chosen = (
        applied(calls, **published | {"blocks": {"steps": 10, "candidates": count}}) for count in (1, 2)
    )
    changed = [
        not torch.equal(layer.codes, other.codes)
        for layer, other in zip(fixed.transformer.modules(), chosen.transformer.modules(), strict=True)
        if isinstance(layer, QuantizedLinear) and isinstance(other, QuantizedLinear)
    ]
    assert sum(changed) > len(changed) // 2


def test_gptq_assigns_better_than_distance(calls: list[Call], held_out: list[Call]) -> None:
    alone = FULL | {"blocks": None, "finetune": None}
    nearest, gptq = (
        quality(applied(calls, **alone | {"rounding": r}), held_out) for r in ("nearest", "gptq")
    )
    assert gptq > nearest + 2


def test_equal_runs_give_equal_bits(calls: list[Call]) -> None:
    short = FULL | {"blocks": {"steps": 4}, "finetune": {"steps": 4}}
    first = applied(calls, **short).transformer.state_dict()
    second = applied(calls, **short).transformer.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    other = applied(calls, **short | {"seed": 1}).transformer.state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_running_blocks_again_in_the_backward_pass_changes_no_bit(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = FULL | {"blocks": None, "finetune": {"steps": 4}}
    kept = applied(calls, **short).transformer.state_dict()
    monkeypatch.setattr(vector_run, "RECOMPUTE_FROM", 0)
    denoiser = model()
    used = []
    switch = type(denoiser.transformer).enable_gradient_checkpointing
    monkeypatch.setattr(
        type(denoiser.transformer),
        "enable_gradient_checkpointing",
        lambda transformer: (used.append(True), switch(transformer))[1],
    )
    stage(**short).apply_calls(denoiser, {}, calls)
    assert used
    assert not denoiser.transformer.is_gradient_checkpointing
    again = denoiser.transformer.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items())


def test_nothing_of_the_training_stays(calls: list[Call]) -> None:
    denoiser = applied(calls, **FULL | {"blocks": {"steps": 2}, "finetune": {"steps": 2}})
    assert not any(parameter.requires_grad for parameter in denoiser.transformer.parameters())
    assert not any(module._forward_pre_hooks for module in denoiser.transformer.modules())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 2}, r"blocks\.0\..*: a codebook of 256 codewords is larger than the layer.* skip"),
        ({"skip": ["*.to_x"]}, r'vq\.skip: "\*\.to_x" matches no layer; closest: '),
        ({"skip": ["*"]}, "every layer is kept or skipped"),
        ({"finetune": {"features": 1.0}}, r"vq\.finetune\.features: .* set it to 0"),
    ],
)
def test_refusals_change_nothing(calls: list[Call], fields: dict[str, Any], message: str) -> None:
    denoiser = load_denoiser(tiny_pipeline(seed=2))  # 16 wide: 64 sub-vectors of 4 in a 16 x 16 layer
    before = copy.deepcopy(denoiser.transformer.state_dict())
    with pytest.raises(InputError, match=message):
        stage(**{"bits": 3} | fields).apply_calls(denoiser, {}, calls)
    after = denoiser.transformer.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_without_calls_or_with_broken_weights() -> None:
    denoiser = model()
    with pytest.raises(InputError, match=r"vq: no recorded calls; set calibration\.samples"):
        stage(bits=3).apply_calls(denoiser, {}, [])
    with pytest.raises(InputError, match="needs recorded calls"):
        stage(bits=3).apply(denoiser, {})
    denoiser.transformer.transformer_blocks[1].attn1.to_q.weight[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"blocks\.1\.attn1\.to_q\.weight holds NaN or infinite"):
        stage(bits=3).apply_calls(denoiser, {}, [Call(1.0, {"hidden_states": torch.zeros(1)})])


def test_gptq_leaves_no_candidates_to_choose_from() -> None:
    with pytest.raises(
        InputError, match=r"vq\.blocks\.candidates: 2 .* set candidates: 1, or rounding: nearest"
    ):
        stage(blocks={"candidates": 2})


def test_other_bits_are_refused() -> None:
    with pytest.raises(InputError, match=r"vq\.bits"):
        stage(bits=4)
