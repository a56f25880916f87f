"""Cutting out blocks: against models built without them, brute force, and what the formulas say."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_cases import LEARNED, denoiser, plant_identities, recorded, smaller, stage
from tiny_dit import dit_inputs, tiny_dit, tiny_flux, tiny_pipeline, tiny_pixart, tiny_sd3
from torch import nn

from ditpress.calibrate.calls import Call
from ditpress.compress import check_order, parse_stage
from ditpress.compress.distill.lora import low_rank_updates
from ditpress.compress.prune.blocks import cut_blocks, gated
from ditpress.compress.prune.depth_output import output_errors
from ditpress.compress.prune.depth_similarity import block_influence
from ditpress.compress.prune.masks import all_masks
from ditpress.errors import InputError
from ditpress.load import anatomy_of, load_denoiser
from ditpress.recipes.skeleton import planned


def make(family: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    if family == "dit":
        model = tiny_dit(num_layers=4)
        return model, dit_inputs(model)
    return {"pixart": tiny_pixart, "sd3": tiny_sd3, "flux": tiny_flux}[family]()


CASES = {
    "dit": ({"transformer_blocks": [0, 2]}, {"num_layers": 2}),
    "pixart": ({"transformer_blocks": [1]}, {"num_layers": 1}),
    "sd3": ({"transformer_blocks": [1, 2]}, {"num_layers": 2, "dual_attention_layers": (0,)}),
    "flux": (
        {"transformer_blocks": [1], "single_transformer_blocks": [0]},
        {"num_layers": 1, "num_single_layers": 1},
    ),
}


@pytest.mark.parametrize("family", CASES)
def test_skipped_and_cut_blocks_give_the_smaller_model(family: str, tmp_path: Path) -> None:
    model, inputs = make(family)
    kept, config = CASES[family]
    expected = smaller(model, kept, **config)(**inputs)[0]
    whole = model(**inputs)[0]
    anatomy = anatomy_of(model)
    skipped = [
        f"{name}.{index}"
        for name, stay in kept.items()
        for index in range(len(getattr(model, name)))
        if index not in stay
    ]
    for none in (0.0, torch.zeros(())):
        with gated(model, skipped, lambda _, m=none: m):
            assert torch.equal(model(**inputs)[0], expected)
    assert torch.equal(model(**inputs)[0], whole)
    with gated(model, skipped, lambda _: 1.0):
        assert torch.equal(model(**inputs)[0], whole)
    cut_blocks(model, anatomy, kept)
    assert torch.equal(model(**inputs)[0], expected)
    assert all(model.config[field] == value for field, value in config.items())
    assert anatomy_of(model) == anatomy
    assert all(len(getattr(model, name)) == len(stay) for name, stay in kept.items())
    roles = anatomy.linears(model)
    assert set(roles) == {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**inputs)[0], expected)


def test_half_a_block_is_half_its_change() -> None:
    model, inputs = make("dit")
    seen: list[torch.Tensor] = []
    handle = model.transformer_blocks[2].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    for m in (0.0, 1.0, 0.25):
        with gated(model, ["transformer_blocks.1"], lambda _, m=m: m):
            model(**inputs)
    handle.remove()
    torch.testing.assert_close(seen[2], 0.75 * seen[0] + 0.25 * seen[1])


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_blocks_that_must_stay(family: str) -> None:
    model, _ = make(family)
    anatomy = anatomy_of(model)
    fixed = {name: anatomy.fixed_blocks(model, name) for name in anatomy.block_lists(model)}
    if family == "flux":
        assert not any(fixed.values())
        return
    assert fixed == {"transformer_blocks": frozenset({2})}
    with pytest.raises(InputError, match=r"transformer_blocks\.2 must stay.*keep 2 too"):
        cut_blocks(model, anatomy, {"transformer_blocks": [0, 1]})
    assert len(model.transformer_blocks) == 3


def test_the_first_dit_block_stays_where_its_embedder_is_its_own() -> None:
    """The last layer of DiT is conditioned by the first block's embedder."""
    model = tiny_dit(num_layers=3, tied=False)
    anatomy = anatomy_of(model)
    assert anatomy.fixed_blocks(model, "transformer_blocks") == frozenset({0})
    assert (
        load_denoiser(tiny_pipeline(num_layers=3)).anatomy.fixed_blocks(
            denoiser().transformer, "transformer_blocks"
        )
        == frozenset()
    )


def test_the_additive_criterion_is_the_error_of_models_without_a_block() -> None:
    model = denoiser()
    calls = recorded(model)
    names = [f"transformer_blocks.{i}" for i in range(4)]
    found = output_errors(model.transformer, calls, names)
    for index, name in enumerate(names):
        kept = [i for i in range(4) if i != index]
        without = smaller(model.transformer, {"transformer_blocks": kept}, num_layers=3)
        expected = 0.0
        for call in calls:  # one call a timestep: its own energy counts
            with torch.no_grad():
                y, z = (m(**call.kwargs)[0].double() for m in (model.transformer, without))
            expected += float((y - z).square().sum() / y.square().sum()) / len(calls)
        assert found[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_the_subset_is_the_best_of_all_by_the_sum(ratio: float) -> None:
    model = denoiser()
    calls = recorded(model)
    facts = stage(criterion="output", ratio=ratio).apply_calls(model, {}, calls)
    scores = [facts["block_scores"][f"transformer_blocks.{i}"] for i in range(4)]
    going = min(combinations(range(4), int(4 * ratio)), key=lambda subset: sum(scores[i] for i in subset))
    assert facts["kept_blocks"] == {"transformer_blocks": [i for i in range(4) if i not in going]}
    assert len(model.transformer.transformer_blocks) == 4 - int(4 * ratio)


def test_influence_is_one_minus_the_cosine() -> None:
    model = denoiser()
    (call, *_) = calls = recorded(model, steps=1)
    through: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda m, args, out: through.extend((args[0], out)))
        for block in model.transformer.transformer_blocks
    ]
    with torch.no_grad():
        model.transformer(**call.kwargs)
    for handle in handles:
        handle.remove()
    found = block_influence(model.transformer, calls, ["transformer_blocks.0", "transformer_blocks.3"])
    for index in (0, 3):
        x, y = (t.double().numpy() for t in through[2 * index : 2 * index + 2])
        norms = ((x**2).sum(-1) * (y**2).sum(-1)) ** 0.5
        assert found[f"transformer_blocks.{index}"] == pytest.approx(1 - ((x * y).sum(-1) / norms).mean())


@pytest.mark.parametrize("criterion", ["output", "similarity"])
def test_blocks_that_do_nothing_go_first(criterion: str) -> None:
    model = denoiser()
    plant_identities(model.transformer, (0, 2))
    expected = [model.transformer(**call.kwargs)[0] for call in recorded(model)]
    calls = recorded(model)
    facts = stage(criterion=criterion).apply_calls(model, {}, calls)
    assert facts["kept_blocks"] == {"transformer_blocks": [1, 3]}
    for call, output in zip(calls, expected, strict=True):
        assert torch.equal(model.transformer(**call.kwargs)[0], output)


def test_low_rank_updates_leave_the_weights_alone() -> None:
    model, inputs = make("dit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(**inputs)[0]
    name = "transformer_blocks.1.ff.net.2"
    linear = model.get_submodule(name)
    x = torch.randn(3, linear.in_features)
    with low_rank_updates(model, [name], rank=2, alpha=6.0, seed=0) as parameters:
        assert torch.equal(model(**inputs)[0], output)
        down, up = parameters
        with torch.no_grad():
            up.normal_()
        dense = linear.weight + 3.0 * up @ down
        torch.testing.assert_close(linear(x), nn.functional.linear(x, dense, linear.bias))
        assert not torch.equal(model(**inputs)[0], output)
    assert torch.equal(model(**inputs)[0], output)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "fields",
    [
        {"criterion": "output"},
        {"criterion": "random", "ratio": 0.25},
        {"keep": [0, 3]},
        {"learned": LEARNED | {"group": 4, "training": LEARNED["training"] | {"steps": 2}}},
    ],
)
def test_the_plan_is_what_is_made(fields: dict[str, Any]) -> None:
    model = denoiser()
    pruned = planned(model, [stage(**fields)])
    assert len(model.transformer.transformer_blocks) == 4
    stage(**fields).apply_calls(model, {}, recorded(model))
    shapes = [{n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (pruned, model.transformer)]
    assert shapes[0] == shapes[1]
    assert pruned.config.num_layers == model.transformer.config.num_layers


def test_random_blocks_follow_the_seed() -> None:
    found = []
    for seed in (0, 0, 1, 2, 3):
        model = denoiser(8)
        facts = stage(criterion="random", seed=seed).apply_calls(model, {}, ())
        found.append(tuple(facts["kept_blocks"]["transformer_blocks"]))
    assert found[0] == found[1]
    assert len(set(found)) > 2


def test_flux_lists_and_sd3_groups() -> None:
    model, inputs = make("flux")
    shell = Shell(model)
    facts = stage(criterion="similarity").apply_calls(shell, {}, [Call(0.5, inputs)])
    assert {name: len(kept) for name, kept in facts["kept_blocks"].items()} == {
        "transformer_blocks": 1,
        "single_transformer_blocks": 1,
    }
    model, inputs = make("sd3")
    spec = {"group": 3, "training": {"steps": 3, "calls": 1}}
    facts = stage(ratio=2 / 3, learned=spec).apply_calls(Shell(model), {}, [Call(500.0, inputs)])
    assert facts["kept_blocks"] == {"transformer_blocks": [2]}


class Shell:
    """A transformer and its anatomy: all that the stage looks at."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.anatomy = anatomy_of(transformer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 0.2, "criterion": "output"}, r"takes none of the 4 blocks of transformer_blocks; raise"),
        ({"ratio": 0.2}, r"no whole number of the 2 blocks of a group; expected one of 0\.5"),
        ({"learned": {"group": 3}, "ratio": 1 / 3}, r"group 3: does not divide the 4 blocks of transf"),
        ({"keep": [0, 4]}, r"transformer_blocks\.4 does not exist; transformer_blocks has the blocks 0 to 3"),
        ({"keep": []}, r"none of the 4 blocks of transformer_blocks would stay"),
        ({"keep": [1, 1]}, r"blocks \[1, 1\] of transformer_blocks; name each once"),
        (
            {"keep": {"blocks": [1]}},
            r"blocks is no list of blocks of this model; expected transf",
        ),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    model = denoiser()
    calls = recorded(model)
    with pytest.raises(InputError, match=message):
        planned(model, [stage(**fields)])
    with pytest.raises(InputError, match=message):
        stage(**fields).apply_calls(model, {}, calls)
    assert len(model.transformer.transformer_blocks) == 4


def test_more_refusals() -> None:
    with pytest.raises(InputError, match="2 recorded calls to learn from, a training step sees 4"):
        stage().apply_calls(denoiser(), {}, recorded(denoiser(), steps=2))
    with pytest.raises(InputError, match=r"no recorded calls to judge transformer_blocks\.0"):
        stage(criterion="output").apply_calls(denoiser(), {}, ())
    with pytest.raises(InputError, match=r"prune-depth\.ratio"):
        stage(ratio=1.0)
    with pytest.raises(InputError, match=r"name them, as in keep: \{transformer_blocks"):
        stage(keep=[0]).plan(Shell(make("flux")[0]), make("flux")[0])
    model, _ = make("sd3")
    with pytest.raises(InputError, match=r"leaves 1 of the blocks|does not divide"):
        stage().plan(Shell(model), model)
    with pytest.raises(InputError, match="10 of 30 blocks can be kept"):
        all_masks(10, 30)
    with pytest.raises(InputError, match="prune-depth must not come after quantize"):
        check_order([parse_stage("quantize"), parse_stage("prune-depth")])
