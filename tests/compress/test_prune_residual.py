"""Pruning of the residual stream: chunk by chunk, in norms and positions too, and together with the rest."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import calls_of, make
from prune_cases import denoiser_of, doubled, masked, random_kept, run
from tiny_dit import dit_inputs, tiny_dit
from torch import nn

from ditpress.compress import PruneWidth, parse_stage
from ditpress.compress.prune.groups import KeptResidual, cut, masks_of
from ditpress.errors import InputError
from ditpress.export.onnx import export_transformer
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.checkpoint import save_transformer
from ditpress.load.residual import ResidualGroup
from ditpress.load.weights import load_transformer
from ditpress.load.widths import cut_sizes, width_groups

STREAMED = ("dit", "sd3", "flux")
LOW_BIT = {
    "weights": {"format": "int4", "group": 8},
    "activations": "int8",
    "modulation": {"format": "int8", "group": 8},
}


def streams_of(model: nn.Module) -> list[ResidualGroup]:
    return [group for group in width_groups(model) if isinstance(group, ResidualGroup)]


def test_norms_with_weights_lose_theirs() -> None:
    """The norm in front of the MLP has weights by config; all others of the families have none."""
    model, inputs = doubled(*make("dit", norm_elementwise_affine=True))
    kept = random_kept(model)
    expected = run(masked(model, "dit", kept), inputs)
    cut(model, kept)
    assert float((run(model, inputs) - expected).abs().max()) <= 1e-10
    assert model.transformer_blocks[1].norm3.weight.shape == (8,)


def test_only_what_is_in_the_stream_is_narrower() -> None:
    """The embedding of timestep and label keeps its width, and so does attention."""
    model, inputs = make("dit")
    PruneWidth(residual=0.5, round_to={"residual": 8}).apply_calls(denoiser_of(model), {}, calls_of(inputs))
    block = model.transformer_blocks[1]
    shapes = {name: tuple(tensor.shape) for name, tensor in block.state_dict().items() if "bias" not in name}
    assert shapes == {
        "norm1.emb.timestep_embedder.linear_1.weight": (16, 256),
        "norm1.emb.timestep_embedder.linear_2.weight": (16, 16),
        "norm1.emb.class_embedder.embedding_table.weight": (6, 16),
        "norm1.linear.weight": (6 * 8, 16),
        "attn1.to_q.weight": (16, 8),
        "attn1.to_k.weight": (16, 8),
        "attn1.to_v.weight": (16, 8),
        "attn1.to_out.0.weight": (8, 16),
        "ff.net.0.proj.weight": (64, 8),
        "ff.net.2.weight": (8, 64),
    }
    assert model.pos_embed.proj.out_channels == 8
    assert model.proj_out_1.weight.shape == (2 * 8, 16)
    assert model.proj_out_2.weight.shape == (16, 8)
    assert {tuple(norm.normalized_shape) for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {
        (8,)
    }


def test_rows_and_columns_are_those_of_the_dependency_graph() -> None:
    """Torch-Pruning finds them by tracing from the embedder, if the table of positions takes a gradient."""
    pruning = pytest.importorskip("torch_pruning")
    model, inputs = make("dit", num_attention_heads=3)
    (group,) = streams_of(model)
    gone = [1, 7, group.width - 1]
    channels = torch.ones(group.width, dtype=torch.bool)
    channels[gone] = False
    traced = copy.deepcopy(model).requires_grad_(True)
    table = nn.Parameter(traced.pos_embed.pos_embed)
    del traced.pos_embed.pos_embed
    traced.pos_embed.pos_embed = table
    graph = pruning.DependencyGraph().build_dependency(
        traced,
        example_inputs=inputs,
        forward_fn=lambda module, example: module(**example).sample,
        unwrapped_parameters=[(table, 2)],
    )
    found = graph.get_pruning_group(traced.pos_embed.proj, pruning.prune_conv_out_channels, gone)
    names: dict[Any, str] = {module: name for name, module in traced.named_modules()}
    expected: dict[tuple[str, str], set[int]] = {}
    for dependency, own in found:
        module = dependency.target.module
        if isinstance(module, nn.Linear | nn.Conv2d):
            side = "rows" if "out" in dependency.handler.__name__ else "columns"
            expected.setdefault((names[module], side), set()).update(own)
    ours = {
        (name, side): set((~mask).nonzero()[:, 0].tolist())
        for name, masks in masks_of(model, [KeptResidual(group, channels)]).items()
        for side, mask in (("rows", masks.rows), ("columns", masks.columns))
        if not bool(mask.all())
    }
    assert len(ours) == 2 * (3 + 4) + 3
    assert len(ours["transformer_blocks.0.norm1.linear", "rows"]) == 6 * len(gone)
    assert ours == expected


@pytest.mark.parametrize("importance", ["taylor", "hessian", "magnitude"])
def test_dead_channels_go_first(importance: str) -> None:
    """Channels that nothing reads and little writes: only the norms have counted them."""
    model, inputs = doubled(*make("dit"))
    dead = torch.arange(16) % 2 == 1
    (group,) = streams_of(model)
    with torch.no_grad():
        for name in group.columns:
            model.get_submodule(name).weight[:, dead] = 0.0
        for name in group.rows:
            layer = model.get_submodule(name)
            layer.weight[dead.repeat(len(layer.weight) // 16)] *= 0.01
    expected = run(masked(model, "dit", [KeptResidual(group, ~dead)]), inputs)
    stage = PruneWidth(residual=0.5, round_to={"residual": 8}, importance=importance)
    assert stage.apply_calls(denoiser_of(model), {}, calls_of(inputs)) == {
        "pruned": {"pos_embed": {"residual": 8}},
        "kept_channels": {"pos_embed": list(range(0, 16, 2))},
    }
    torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", STREAMED)
def test_heads_and_units_are_fitted_in_the_narrower_stream(family: str) -> None:
    model, inputs = make(family)
    settings: dict[str, Any] = {
        "heads": 0.5,
        "mlp": 0.5,
        "residual": 0.25,
        "round_to": {"mlp": 8, "residual": 4},
    }
    alone = copy.deepcopy(model)
    PruneWidth(residual=0.25, round_to={"residual": 4}).apply_calls(denoiser_of(alone), {}, calls_of(inputs))
    before = run(alone, inputs)
    errors = {}
    for fit in (False, True):
        changed = copy.deepcopy(model)
        PruneWidth(**settings, reconstruct=fit).apply_calls(denoiser_of(changed), {}, calls_of(inputs))
        errors[fit] = float((run(changed, inputs) - before).norm())
    assert errors[True] < 0.8 * errors[False]


def refused(model: nn.Module, inputs: dict[str, Any], count: int = 3, **settings: Any) -> str:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        PruneWidth(**settings).apply_calls(denoiser_of(model), {}, calls_of(inputs, count))
    after = model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) or tensor.isnan().any() for name, tensor in state.items())
    return str(caught.value)


def test_refusals_name_the_remedy() -> None:
    model, inputs = make("dit")
    assert (
        "pos_embed: prune-width.residual 0.5 leaves no channel of 16 in multiples of 64; lower it, or "
        "prune-width.round_to.residual" in refused(model, inputs, residual=0.5)
    )
    assert "prune-width.residual 0.1 cuts nothing: pos_embed has 16" in refused(
        model, inputs, residual=0.1, heads=0.5, round_to={"residual": 8}
    )
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="residual"):
            PruneWidth(residual=wrong)
    pixart, its_inputs = make("pixart")
    assert "PixArtTransformer2DModel has nothing for prune-width.residual to cut; set it to 0" in refused(
        pixart, its_inputs, residual=0.5, heads=0.5
    )
    few: dict[str, Any] = {
        "residual": 0.5,
        "heads": 0.5,
        "round_to": {"residual": 8},
        "importance": "magnitude",
    }
    assert "raise calibration.steps" in refused(model, inputs, count=1, **few)
    model.pos_embed.proj.weight[0, 0, 0, 0] = math.inf
    assert "pos_embed.proj.weight holds NaN or infinite" in refused(
        model, inputs, residual=0.5, round_to={"residual": 8}
    )


def test_streams_that_do_not_fit_are_left_alone() -> None:
    model, _ = make("dit")
    model.norm_out = nn.LayerNorm(17)
    assert streams_of(model) == []


def test_other_sizes_are_refused_where_positions_were_a_formula(tmp_path: Path) -> None:
    """The formula would number the channels that are left as if they were all; SD3 crops a stored table."""
    for family, ends in (("dit", True), ("sd3", False)):
        model, inputs = make(family)
        stage = PruneWidth(residual=0.5, round_to={"residual": 8}, importance="magnitude")
        smaller = inputs | {"hidden_states": inputs["hidden_states"][..., :4, :4]}
        whole = run(model, smaller)
        stage.apply_calls(denoiser_of(model), {}, calls_of(inputs))
        save_transformer(model, tmp_path / family)
        for narrow in (model, load_transformer(tmp_path / family)):
            if ends:
                with pytest.raises(InputError, match=r"input of 1 x 1 patches: .* 2 x 2 patches only"):
                    run(narrow, smaller)
            else:
                assert run(narrow, smaller).shape == whole.shape


def test_cut_twice_and_described_as_a_whole(tmp_path: Path) -> None:
    """A narrower model is loaded and made narrower still; positions stay those of the channels."""
    model, inputs = make("dit")
    table = model.pos_embed.pos_embed.clone()
    for count, name in ((12, "first"), (8, "second")):
        (group,) = streams_of(model)
        cut(model, [KeptResidual(group, torch.arange(group.width) >= group.width - count)])
        assert cut_sizes(model) == {"pos_embed": {"residual": count}}
        expected = run(model, inputs)
        save_transformer(model, tmp_path / name)
        model = load_transformer(tmp_path / name)
        assert torch.equal(run(model, inputs), expected)
        assert torch.equal(model.pos_embed.pos_embed, table[..., -count:])


@pytest.mark.parametrize("quantized", [False, True])
def test_exported_models_compute_the_same(quantized: bool, tmp_path: Path) -> None:
    """Heads, units and channels at once, then low bits; written, read, exported and fused."""
    model = tiny_dit(num_attention_heads=4)
    inputs = dit_inputs(model)
    stage = PruneWidth(
        mlp=0.5, heads=0.5, residual=0.25, round_to={"mlp": 8, "residual": 8}, importance="magnitude"
    )
    stage.apply_calls(denoiser_of(model), {}, calls_of(inputs))
    if quantized:
        parse_stage({"quantize": LOW_BIT}).apply(denoiser_of(model), {})
        assert isinstance(model.transformer_blocks[0].norm1.linear, QuantizedLinear)
    expected = run(model, inputs)
    save_transformer(model, tmp_path / "model")
    loaded: Any = load_transformer(tmp_path / "model")
    assert torch.equal(run(loaded, inputs), expected)
    assert cut_sizes(loaded)["pos_embed"] == {"residual": 24}
    _, parity = export_transformer(loaded, tmp_path / "onnx", [call.kwargs for call in calls_of(inputs)])
    assert parity.holds(1e-5), str(parity)
    assert (parity.fusion is not None) == quantized
