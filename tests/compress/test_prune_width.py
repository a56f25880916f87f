"""Width pruning: the cut model is the masked one, nothing else goes with it, and what is left is fitted."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import FAMILIES, calls_of, make
from prune_cases import ATTENTION, HIDDEN, RESIDUAL, denoiser_of, doubled, masked, random_kept, run
from torch import nn

from ditpress.compress import PruneWidth, check_order, parse_stage
from ditpress.compress.prune.groups import Kept, KeptHeads, KeptHidden, cut, masks_of
from ditpress.compress.prune.reconstruct import reconstruct
from ditpress.errors import InputError, StageError
from ditpress.load.widths import HeadGroup, HiddenGroup, cut_sizes, width_groups
from ditpress.recipes.skeleton import planned, skeleton
from ditpress.validate.size import size_of


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_model_is_the_masked_one(family: str) -> None:
    model, inputs = doubled(*make(family))
    kept = random_kept(model)
    assert {one.group.name for one in kept} == {*ATTENTION[family], *HIDDEN[family], *RESIDUAL[family]}
    expected = run(masked(model, family, kept), inputs)
    changed = copy.deepcopy(model)
    cut(changed, kept)
    assert float((run(changed, inputs) - expected).abs().max()) <= 1e-10
    assert float((run(model, inputs) - expected).abs().max()) > 1e-4
    assert sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", ["dit", "pixart"])
def test_channels_of_heads_go_with_the_scale_of_attention(family: str) -> None:
    """Queries and keys keep other channels than values, each head its own."""
    model, inputs = doubled(*make(family))
    kept = random_kept(model, channels=True)
    expected = run(masked(model, family, kept), inputs)
    changed = copy.deepcopy(model)
    cut(changed, kept)
    assert float((run(changed, inputs) - expected).abs().max()) <= 1e-10
    attention = changed.transformer_blocks[0].attn1
    assert (attention.heads, attention.inner_dim, attention.inner_kv_dim) == (1, 4, 4)
    assert attention.scale == 0.5
    assert attention.to_out[0].in_features == 4


def test_gated_units_go_from_both_halves() -> None:
    model, inputs = doubled(*make("dit", activation_fn="geglu"))
    kept = random_kept(model)
    chunks = {one.group.chunks for one in kept if isinstance(one, KeptHidden)}
    assert chunks == {2}
    expected = run(masked(model, "dit", kept), inputs)
    cut(model, kept)
    assert float((run(model, inputs) - expected).abs().max()) <= 1e-10
    assert model.transformer_blocks[0].ff.net[0].proj.out_features == 64
    assert model.transformer_blocks[0].ff.net[2].in_features == 32


def test_rows_and_columns_are_those_of_the_dependency_graph() -> None:
    """Torch-Pruning finds them by tracing; its groups are right for DiT."""
    pruning = pytest.importorskip("torch_pruning")
    model, inputs = make("dit", num_attention_heads=3)
    kept: list[Kept] = []
    gone: dict[str, list[int]] = {}
    for group in width_groups(model):
        if isinstance(group, HiddenGroup):
            units = torch.ones(group.hidden, dtype=torch.bool)
            units[[3, 5, group.hidden - 1]] = False
            kept.append(KeptHidden(group, units))
            gone[group.producer] = [3, 5, group.hidden - 1]
        elif isinstance(group, HeadGroup):
            channels = torch.ones(group.heads, group.head_dim, dtype=torch.bool)
            channels[1] = False
            kept.append(KeptHeads(group, channels, channels))
            gone[group.queries[0]] = list(range(group.head_dim, 2 * group.head_dim))
    traced = copy.deepcopy(model).requires_grad_(True)
    graph = pruning.DependencyGraph().build_dependency(
        traced, example_inputs=inputs, forward_fn=lambda module, example: module(**example).sample
    )
    names = {module: name for name, module in traced.named_modules()}
    expected: dict[tuple[str, str], set[int]] = {}
    for root, indices in gone.items():
        found = graph.get_pruning_group(
            traced.get_submodule(root), pruning.prune_linear_out_channels, indices
        )
        for dependency, own in found:
            name = names.get(dependency.target.module)
            if isinstance(dependency.target.module, nn.Linear):
                side = "rows" if "out" in dependency.handler.__name__ else "columns"
                expected.setdefault((str(name), side), set()).update(own)
    ours = {
        (name, side): set((~mask).nonzero()[:, 0].tolist())
        for name, masks in masks_of(model, kept).items()
        for side, mask in (("rows", masks.rows), ("columns", masks.columns))
        if not bool(mask.all())
    }
    assert len(ours) == 2 * (4 + 2)
    assert ours == expected


def test_least_squares_by_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    x = torch.randn(500, 12, dtype=torch.float64, generator=generator) @ mixing + 1.5
    weight = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    bias = torch.randn(7, dtype=torch.float64, generator=generator)
    columns = torch.tensor([True, False, True, True, False, True] * 2)
    moment, mean = x.T @ x / len(x), x.mean(dim=0)
    left, outputs = x[:, columns].numpy(), (x @ weight.T).numpy()
    expected = np.linalg.lstsq(np.hstack([left, np.ones((500, 1))]), outputs + bias.numpy(), rcond=None)[0]
    found, shift = reconstruct(weight, bias, columns, moment, mean, damping=1e-14)
    np.testing.assert_allclose(found.numpy(), expected[:-1].T, rtol=1e-8, atol=1e-8)
    assert shift is not None
    np.testing.assert_allclose(shift.numpy(), expected[-1], rtol=1e-8, atol=1e-8)
    # Without a bias there is no constant to fit with.
    expected = np.linalg.lstsq(left, outputs, rcond=None)[0]
    found, shift = reconstruct(weight, None, columns, moment, mean, damping=1e-14)
    np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-8, atol=1e-8)
    assert shift is None
    # With endless damping the weights stay, and the bias takes the mean of what goes.
    found, shift = reconstruct(weight, bias, columns, moment, mean, damping=1e14)
    torch.testing.assert_close(found, weight[:, columns])
    torch.testing.assert_close(shift, bias + weight[:, ~columns] @ mean[~columns])


def test_constant_inputs_leave_their_mean() -> None:
    mean = torch.tensor([1.0, 2.0, 3.0])
    weight = torch.tensor([[1.0, 10.0, 100.0]])
    columns = torch.tensor([True, False, True])
    found, bias = reconstruct(weight, torch.zeros(1), columns, torch.outer(mean, mean), mean)
    torch.testing.assert_close(found @ mean[columns].double() + bias, torch.tensor([321.0]).double())


@pytest.mark.parametrize("family", FAMILIES)
def test_fitted_models_are_closer(family: str) -> None:
    model, inputs = make(family)
    before = run(model, inputs)
    errors = {}
    for fit in (False, True):
        changed = copy.deepcopy(model)
        stage = PruneWidth(mlp=0.5, heads=0.5, round_to={"mlp": 8}, reconstruct=fit, importance="magnitude")
        facts = stage.apply_calls(denoiser_of(changed), {}, calls_of(inputs))
        errors[fit] = float((run(changed, inputs) - before).norm() / before.norm())
        assert facts["pruned"] == cut_sizes(changed)
        assert set(facts["pruned"]) == {*ATTENTION[family], *HIDDEN[family]}
    assert errors[True] < 0.6 * errors[False]
    assert all(not parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_planned_is_applied(family: str, bits: int) -> None:
    """Also in the bits that are stored: a checkpoint in 16 bits stays one, although weights are fitted."""
    model, inputs = make(family)
    for parameter in model.parameters() if bits == 16 else ():
        parameter.copy_(parameter.half().float())
    stage = PruneWidth(
        mlp=0.5,
        heads=0.5,
        head_dim=0.5 if family in ("dit", "pixart") else 0.0,
        residual=0.0 if family == "pixart" else 0.5,
        round_to={"mlp": 8, "head_dim": 2, "residual": 8},
        importance="random",
    )
    before = skeleton(model)
    plan = planned(denoiser_of(model), [stage])
    assert size_of(before, skeleton(model)) == size_of(before, model)  # the plan left it alone
    stage.apply_calls(denoiser_of(model), {}, calls_of(inputs))
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (plan, model)]
    assert shapes[0] == shapes[1]
    assert size_of(before, plan) == size_of(before, model)
    assert [group.sizes for group in width_groups(plan)] == [group.sizes for group in width_groups(model)]
    assert all(tensor.untyped_storage().nbytes() <= 8 for tensor in plan.state_dict().values())


def test_global_ranking_gives_more_to_layers_that_matter() -> None:
    """The second block is turned nearly off: all that goes, goes there."""
    model, inputs = make("dit", num_attention_heads=4)
    with torch.no_grad():
        for index, size in ((0, 1.0), (1, 1e-3)):
            block = model.transformer_blocks[index]
            block.ff.net[2].weight *= size
            block.attn1.to_out[0].weight *= size
    sizes = {}
    for ranking in ("local", "global"):
        changed = copy.deepcopy(model)
        stage = PruneWidth(mlp=0.25, heads=0.25, round_to={"mlp": 8}, ranking=ranking)
        sizes[ranking] = stage.apply_calls(denoiser_of(changed), {}, calls_of(inputs))["pruned"]
        assert torch.isfinite(run(changed, inputs)).all()
    assert sizes["local"] == {
        f"transformer_blocks.{index}.{name}": size
        for index in range(2)
        for name, size in (("attn1", {"heads": 3, "head_dim": 8}), ("ff", {"hidden": 96}))
    }
    assert sizes["global"] == {
        "transformer_blocks.1.attn1": {"heads": 2, "head_dim": 8},
        "transformer_blocks.1.ff": {"hidden": 64},
    }


def test_random_is_repeatable_and_by_seed() -> None:
    model, inputs = make("dit")
    results = []
    for seed in (0, 0, 1):
        changed = copy.deepcopy(model)
        stage = PruneWidth(mlp=0.5, round_to={"mlp": 8}, importance="random", reconstruct=False, seed=seed)
        stage.apply_calls(denoiser_of(changed), {}, calls_of(inputs))
        results.append(changed.transformer_blocks[0].ff.net[2].weight)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
def test_dead_units_go_first(importance: str) -> None:
    """Units that nothing reads cost nothing: the output stays."""
    model, inputs = make("dit")
    dead = torch.arange(64) % 2 == 1
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.ff.net[2].weight[:, dead] = 0.0
            block.ff.net[0].proj.weight[dead] *= 0.01
    before = run(model, inputs)
    stage = PruneWidth(mlp=0.5, round_to={"mlp": 8}, importance=importance, reconstruct=False)
    stage.apply_calls(denoiser_of(model), {}, calls_of(inputs))
    assert model.transformer_blocks[0].ff.net[2].in_features == 32
    torch.testing.assert_close(run(model, inputs), before, rtol=0, atol=1e-6)


def refused(model: nn.Module, inputs: dict[str, Any], count: int = 3, **settings: Any) -> str:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        PruneWidth(**settings).apply_calls(denoiser_of(model), {}, calls_of(inputs, count))
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) or tensor.isnan().any() for name, tensor in state.items())
    return str(caught.value)


def test_refusals_name_the_layer_and_the_remedy() -> None:
    model, inputs = make("dit")
    assert "nothing would be cut; set one of them" in refused(model, inputs)
    assert (
        "transformer_blocks.0.attn1: prune-width.heads 0.9 leaves no head of 2 in multiples of 1; lower it"
        in refused(model, inputs, heads=0.9)
    )
    assert (
        "transformer_blocks.0.ff: prune-width.mlp 0.9 leaves no hidden unit of 64 in multiples of 64; "
        "lower it, or prune-width.round_to.mlp" in refused(model, inputs, mlp=0.9)
    )
    assert "leaves no channel of a head of 8" in refused(model, inputs, head_dim=0.6)
    assert "prune-width.mlp 0.25 cuts nothing: transformer_blocks.0.ff has 64" in refused(
        model, inputs, mlp=0.25
    )
    # A ratio that cuts heads does not hide one that cuts no units.
    assert "prune-width.mlp 0.25 cuts nothing" in refused(model, inputs, mlp=0.25, heads=0.5)
    assert "raise calibration.steps" in refused(model, inputs, count=1, heads=0.5, importance="magnitude")
    model.transformer_blocks[1].attn1.to_k.weight[0, 0] = math.nan
    assert "transformer_blocks.1.attn1.to_k.weight holds NaN" in refused(model, inputs, heads=0.5)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_normalised_heads_keep_their_channels(family: str) -> None:
    model, inputs = make(family)
    assert "transformer_blocks.0.attn: normalises queries and keys" in refused(model, inputs, head_dim=0.5)


def test_quantized_models_are_refused() -> None:
    model, inputs = make("dit")
    parse_stage({"quantize": {"weights": {"format": "int8", "group": "channel"}}}).apply(
        denoiser_of(model), {}
    )
    text = refused(model, inputs, heads=0.5)
    assert "transformer_blocks.0.attn1.to_q: is a QuantizedLinear, only plain linears are pruned" in text


def test_stage_works_on_calls_and_comes_first() -> None:
    model, _ = make("dit")
    with pytest.raises(StageError, match="call apply_calls"):
        PruneWidth(heads=0.5).apply(denoiser_of(model), {})
    with pytest.raises(StageError, match="there are none"):
        PruneWidth(heads=0.5).apply_calls(denoiser_of(model), {}, [])
    prune = PruneWidth(heads=0.5)
    others = [parse_stage(kind) for kind in ("quantize", "smooth", "rotate", "subspace", "ternary", "vq")]
    for other in (*others, parse_stage({"mixed": {"bits": 4}})):
        with pytest.raises(
            InputError, match=f"prune-width must not come after {other.kind}; put prune-width first"
        ):
            check_order([other, prune])
    with pytest.raises(InputError, match="name it once"):
        check_order([prune, prune])
    check_order([prune, parse_stage("smooth"), parse_stage("quantize")])


def test_attentions_with_fewer_heads_of_keys_are_left_alone() -> None:
    """Grouped queries have no head that goes as a whole; none of our families has them."""
    model, _ = make("dit")
    attention = model.transformer_blocks[0].attn1
    attention.to_k = nn.Linear(16, 8)
    groups = [group.name for group in width_groups(model) if isinstance(group, HeadGroup)]
    assert groups == ["transformer_blocks.1.attn1"]
