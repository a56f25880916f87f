"""Roles, folds that change nothing, and sharing; against the models themselves."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny_dit import dit_inputs, tiny_dit, tiny_flux, tiny_pixart, tiny_sd3
from torch import nn

from ditpress.errors import InputError
from ditpress.load import Role, SmoothGroup, anatomy_of
from ditpress.load.anatomy import tie_shared


def fold(model: nn.Module, group: SmoothGroup, s: torch.Tensor) -> None:
    """The fold as the papers write it: diag(1/s) into the producer, diag(s) into the consumers."""
    source = model.get_submodule(group.source)
    for name in group.linears:
        model.get_submodule(name).weight.mul_(s)
    if group.absorb == "rows":
        source.weight.div_(s[:, None])
        source.bias.div_(s)
        return
    weight, bias = source.weight.chunk(group.chunks), source.bias.chunk(group.chunks)
    weight[group.shift_chunk].div_(s[:, None])
    bias[group.shift_chunk].div_(s)
    weight[group.scale_chunk].div_(s[:, None])
    bias[group.scale_chunk].copy_((bias[group.scale_chunk] + 1 - s) / s)


def make(family: str) -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    if family == "dit":
        model = tiny_dit()
        return model, dit_inputs(model)
    return {"pixart": tiny_pixart, "sd3": tiny_sd3, "flux": tiny_flux}[family]()


FAMILIES = ("dit", "pixart", "sd3", "flux")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fold_leaves_the_output_unchanged(family: str) -> None:
    model, inputs = make(family)
    anatomy = anatomy_of(model)
    assert anatomy.family == family
    model = model.double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    before = model(**inputs)[0]
    groups = anatomy.smooth_groups(model)
    assert groups
    for index, group in enumerate(groups):
        width = model.get_submodule(group.linears[0]).in_features
        s = torch.rand(width, generator=torch.Generator().manual_seed(index), dtype=torch.float64) * 3 + 0.2
        changed = model.get_submodule(group.linears[0]).weight.clone()
        fold(model, group, s)
        assert not torch.equal(changed, model.get_submodule(group.linears[0]).weight)
        after = model(**inputs)[0]
        torch.testing.assert_close(
            after, before, rtol=1e-9, atol=1e-9, msg=lambda text, g=group: f"{g}: {text}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_of_a_group_read_one_tensor(family: str) -> None:
    model, inputs = make(family)
    read: dict[str, torch.Tensor] = {}
    groups = anatomy_of(model).smooth_groups(model)
    for name in {name for group in groups for name in group.linears}:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: read.__setitem__(name, args[0].clone())
        )
    model(**inputs)
    for group in groups:
        assert all(torch.equal(read[name], read[group.linears[0]]) for name in group.linears)
    assert len({name for group in groups for name in group.linears}) == sum(len(g.linears) for g in groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_has_a_role_and_blocks_have_no_others(family: str) -> None:
    model, _ = make(family)
    roles = anatomy_of(model).linears(model)
    assert set(roles) == {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert Role.OTHER not in roles.values()
    assert all("block" not in name for name, role in roles.items() if role is Role.FINAL)


def test_roles_of_a_dit_count_up() -> None:
    model = tiny_dit()
    counts = Counter(anatomy_of(model).linears(model).values())
    assert counts[Role.QKV] == 2 * 3
    assert (
        counts[Role.ATTENTION_OUT]
        == counts[Role.MLP_IN]
        == counts[Role.MLP_OUT]
        == counts[Role.MODULATION]
        == 2
    )
    assert counts[Role.EMBEDDER] == 2 * 2
    assert counts[Role.FINAL] == 2


def test_dit_groups_cover_all_but_the_second_mlp_linear() -> None:
    model = tiny_dit()
    covered = {name for group in anatomy_of(model).smooth_groups(model) for name in group.linears}
    block = {
        name.split(".", 2)[2]
        for name, role in anatomy_of(model).linears(model).items()
        if name.startswith("transformer_blocks") and role not in (Role.MODULATION, Role.EMBEDDER)
    }
    assert {name.split(".", 2)[2] for name in covered} == block - {"ff.net.2"}


def test_joint_attention_has_no_fold_of_its_values() -> None:
    for model, _ in (tiny_sd3(), tiny_flux()):
        rows = [g.source for g in anatomy_of(model).smooth_groups(model) if g.absorb == "rows"]
        assert all(".attn2." in source for source in rows)


def test_equal_embedders_are_found_and_tied() -> None:
    model = tiny_dit()
    inputs = dit_inputs(model)
    before = model(**inputs)[0]
    shared = anatomy_of(model).shared(model)
    assert shared == [("transformer_blocks.0.norm1.emb", "transformer_blocks.1.norm1.emb")]
    parameters = sum(p.numel() for p in model.parameters())
    one = sum(p.numel() for p in model.transformer_blocks[0].norm1.emb.parameters())
    tie_shared(model, shared)
    assert model.transformer_blocks[0].norm1.emb is model.transformer_blocks[1].norm1.emb
    assert sum(p.numel() for p in model.parameters()) == parameters - one
    assert torch.equal(model(**inputs)[0], before)


def test_different_embedders_stay_apart() -> None:
    model = tiny_dit(tied=False)
    assert anatomy_of(model).shared(model) == []


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(
        InputError, match="Linear: not a DiT family we know, expected one of DiTTransformer2DModel"
    ):
        anatomy_of(nn.Linear(2, 2))
