"""The split of inputs: eigenvectors by numpy, the function that stays, rounding noise that falls."""

from __future__ import annotations

import copy
import itertools
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import FAMILIES, calls_of, make
from torch import Tensor, nn

from ditpress.compress import Quantize, Rotate, Smooth, SubspaceStage, check_order
from ditpress.compress.subspace import principal_directions
from ditpress.errors import InputError, StageError
from ditpress.kernels.activations import fake_quantize
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.transforms import Subspace
from ditpress.kernels.wrap import SubspaceLinear, branch_modules, input_weight, wrap_empty
from ditpress.load.anatomy import Role, anatomy_of, plain_name


def split(model: nn.Module, inputs: dict[str, Any], **settings: Any) -> nn.Module:
    changed = copy.deepcopy(model)
    stage = SubspaceStage(**{"rank": 2, "share": 0.25} | settings)
    stage.apply_calls(denoiser_of(changed), {}, calls_of(inputs))
    return changed


def denoiser_of(model: nn.Module) -> Any:
    return SimpleNamespace(transformer=model, anatomy=anatomy_of(model))


def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0].double()


def test_directions_are_the_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator) * torch.logspace(0, -2, 12) + 0.3
    moment = x.T @ x / 400
    found = principal_directions(moment, 3).numpy()
    # The right singular vectors of the data, up to their signs.
    expected = np.linalg.svd(x.double().numpy())[2][:3]
    assert np.abs((found * expected).sum(axis=1)) == pytest.approx(np.ones(3), abs=1e-6)
    assert (found[np.arange(3), np.abs(found).argmax(axis=1)] > 0).all()
    rest = x.double().numpy() - x.double().numpy() @ found.T @ found
    # Eckart-Young: what is left has the energy of the other singular values.
    left = np.linalg.svd(x.double().numpy())[1][3:]
    assert (rest**2).sum() == pytest.approx((left**2).sum(), rel=1e-6)


def test_directions_of_a_wide_layer_leave_as_little() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(900, 700, generator=generator) * torch.logspace(0, -1.5, 700)
    moment = (x.T @ x / 900).double()
    found = principal_directions(moment, 6)
    torch.testing.assert_close(found @ found.T, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)
    left = float(moment.trace() - (found @ moment @ found.T).trace())
    assert left <= float(torch.linalg.eigvalsh(moment)[:-6].sum()) * 1.001


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_stays(family: str) -> None:
    model, inputs = make(family)
    before = run(model, inputs)
    after = split(model, inputs, weights=None)
    wrapped = {name for name, module in after.named_modules() if isinstance(module, SubspaceLinear)}
    roles = anatomy_of(model).linears(model)
    assert wrapped == {name for name, role in roles.items() if role in SubspaceStage().roles}
    assert float((run(after, inputs) - before).norm() / before.norm()) <= 1e-5
    # And with the 8-bit branch of the default nearly.
    stored = run(split(model, inputs), inputs)
    assert 0 < float((stored - before).norm() / before.norm()) <= 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_of_one_group_read_one_tensor_and_share_the_split(family: str) -> None:
    model, inputs = make(family)
    read: dict[str, Tensor] = {}
    for name in anatomy_of(model).linears(model):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: read.__setitem__(name, args[0].clone())
        )
    run(model, inputs)
    groups = anatomy_of(model).readers(model)
    assert sorted(name for names in groups for name in names) == sorted(read)
    assert any(len(names) >= 3 for names in groups)
    for names in groups:
        assert all(torch.equal(read[name], read[names[0]]) for name in names), names
    # No two groups of a block read the same tensor: nothing is stored twice.
    firsts = {
        names[0]: read[names[0]] for names in groups if re.match(r"(\w+blocks\.\d+)\.(?!norm)", names[0])
    }
    for name, other in itertools.combinations(firsts, 2):
        if name.split(".")[:2] == other.split(".")[:2]:
            assert not torch.equal(firsts[name], firsts[other]), (name, other)
    after = split(model, inputs)
    for names in groups:
        modules = [after.get_submodule(name) for name in names]
        if isinstance(modules[0], SubspaceLinear):
            assert all(module.transform is modules[0].transform for module in modules)


def test_groups_see_through_rotations() -> None:
    model, inputs = make("sd3")
    plain = [tuple(map(plain_name, names)) for names in anatomy_of(model).readers(model)]
    Rotate().apply(denoiser_of(model), {})
    assert [tuple(map(plain_name, names)) for names in anatomy_of(model).readers(model)] == plain
    before = run(model, inputs)
    after = split(model, inputs, weights=None)
    assert float((run(after, inputs) - before).norm() / before.norm()) <= 1e-5


def test_the_linear_reads_what_the_largest_directions_leave() -> None:
    model, inputs = make("dit")
    read: list[Tensor] = []
    target = "transformer_blocks.1.ff.net.2"
    model.get_submodule(target).register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, -2)))
    for call in calls_of(inputs):
        run(model, call.kwargs)
    x = torch.cat(read)
    layer = split(model, inputs, rank=3, weights=None).get_submodule(target)
    assert isinstance(layer, SubspaceLinear)
    kept = np.linalg.svd(x.double().numpy(), compute_uv=False)
    rest = layer.transform(x).double()
    assert float(rest.square().sum()) == pytest.approx((kept[3:] ** 2).sum(), rel=0.01)
    # Rounded to FP4 the rest loses less than the whole did.
    weight = model.get_submodule(target).weight

    def lost(y: Tensor) -> float:
        return float(((fake_quantize(y, "fp4-e2m1", 16) - y) @ weight.T).square().sum())

    assert lost(layer.transform(x)) < 0.8 * lost(x)


def test_module_against_its_equation() -> None:
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(3, 8, generator=generator)
    transform = Subspace.rounded(directions)
    assert (transform.directions.dtype, transform.step.shape) == (torch.int8, (3, 1))
    d = (transform.directions.double() * transform.step.double()).numpy()
    assert np.abs(d - directions.numpy()).max() <= float(directions.abs().max()) / 250
    linear, up = nn.Linear(8, 5), nn.Linear(3, 5, bias=False)
    layer = SubspaceLinear(transform, linear, up)
    x = torch.randn(2, 7, 8, generator=generator)
    z = x.double().numpy() @ d.T
    w, u = linear.weight.detach().double().numpy(), up.weight.detach().double().numpy()
    expected = (x.numpy() - z @ d) @ w.T + linear.bias.detach().numpy() + z @ u.T
    with torch.no_grad():
        assert layer(x).numpy() == pytest.approx(expected, abs=1e-5)
        assert layer.half()(x.half()).float().numpy() == pytest.approx(expected, abs=2e-2)
        plain = nn.functional.linear(x, input_weight(layer.float()), layer.linear.bias)
        assert plain.numpy() == pytest.approx(expected, abs=1e-2)
    assert transform.directions.dtype == torch.int8
    made = wrap_empty(nn.Linear(8, 5), layer.describe())
    assert {k: (v.shape, v.dtype) for k, v in made.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in layer.state_dict().items()
    }
    assert branch_modules(nn.Sequential(layer)) == {layer.up}
    with pytest.raises(InputError, match="3 directions of 8 features with a branch 2 -> 5 does not fit"):
        SubspaceLinear(transform, nn.Linear(8, 5), nn.Linear(2, 5, bias=False))
    with pytest.raises(InputError, match=r"expected torch.int8 \[r, K\] and torch.float32 \[r, 1\]"):
        Subspace(torch.zeros(2, 8), torch.ones(2, 1))


@pytest.mark.parametrize("weights", [None, {"format": "int8", "group": "channel"}])
def test_the_plan_has_the_structure_of_the_result(weights: object) -> None:
    model, inputs = make("flux")
    planned = copy.deepcopy(model)
    SubspaceStage(rank=2, share=0.25, weights=weights).plan(denoiser_of(model), planned)
    after = split(model, inputs, weights=weights)
    shapes = [
        {key: (value.shape, value.dtype) for key, value in module.state_dict().items()}
        for module in (planned, after)
    ]
    assert shapes[0] == shapes[1]
    assert [str(m) for m in planned.modules()] == [str(m) for m in after.modules()]


def test_rank_is_a_share_of_the_layer() -> None:
    model, inputs = make("dit")
    after = split(model, inputs, rank=5, share=0.1)
    assert after.transformer_blocks[0].ff.net[2].describe() == {"kind": "subspace", "rank": 1}
    after = split(model, inputs, rank=3, share=0.5)
    assert after.transformer_blocks[0].ff.net[2].describe()["rank"] == 3
    assert isinstance(after.transformer_blocks[0].ff.net[2].up, QuantizedLinear)


def test_refusals_name_the_layer_and_the_remedy() -> None:
    model, inputs = make("dit")
    calls = calls_of(inputs)
    with pytest.raises(InputError, match=r"raise calibration\.steps"):
        SubspaceStage().apply_calls(denoiser_of(model), {}, calls[:1])
    with pytest.raises(InputError, match="no linear of the model has a role in subspace"):
        SubspaceStage(roles=(Role.OTHER,)).apply_calls(denoiser_of(model), {}, calls)
    with pytest.raises(StageError, match="works on recorded calls"):
        SubspaceStage().apply(denoiser_of(model), {})
    broken = copy.deepcopy(model)
    broken.transformer_blocks[1].ff.net[2].weight[3, 3] = math.inf
    with pytest.raises(InputError, match=r"transformer_blocks\.1\.ff\.net\.2\.weight holds NaN or infinite"):
        SubspaceStage().apply_calls(denoiser_of(broken), {}, calls)
    assert not any(isinstance(module, SubspaceLinear) for module in broken.modules())


def test_the_split_stands_between_rotation_and_quantization() -> None:
    check_order([Smooth(), Rotate(), SubspaceStage(), Quantize()])
    for stages in ([SubspaceStage(), Rotate()], [SubspaceStage(), Smooth()], [Quantize(), SubspaceStage()]):
        with pytest.raises(InputError, match="must not come after"):
            check_order(stages)
