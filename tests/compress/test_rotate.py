"""Rotations leave the function as it is, on every family, in float32 and float64."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_dit import dit_inputs, tiny_dit, tiny_flux, tiny_pixart, tiny_sd3
from torch import nn

from ditpress.compress import Quantize, Rotate, Smooth, check_order
from ditpress.errors import InputError
from ditpress.kernels.transforms import Hadamard
from ditpress.kernels.wrap import TransformedLinear, main_linear
from ditpress.load.anatomy import Role, anatomy_of

FAMILIES = ("dit", "pixart", "sd3", "flux")


def make(family: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    if family == "dit":
        model = tiny_dit(num_attention_heads=2, attention_head_dim=12)  # 24 = 12 x 2 and 96 = 12 x 8
        return model, dit_inputs(model)
    return {"pixart": tiny_pixart, "sd3": tiny_sd3, "flux": tiny_flux}[family]()


def denoiser_of(model: nn.Module) -> Any:
    return SimpleNamespace(transformer=model, anatomy=anatomy_of(model))


def run(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0].double()


def rotated(model: nn.Module, **settings: Any) -> nn.Module:
    changed = copy.deepcopy(model)
    Rotate(**settings).apply(denoiser_of(changed), {})
    return changed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"heads": False}, {"matrix": "block", "block": 8, "seed": 3}])
def test_the_function_stays(family: str, settings: dict[str, Any]) -> None:
    model, inputs = make(family)
    before = run(model, inputs)
    after = rotated(model, **settings)
    assert float((run(after, inputs) - before).norm() / before.norm()) <= 1e-5
    # Not by leaving things as they are: every linear of the four roles reads something else now.
    read: dict[str, list[torch.Tensor]] = {}
    roles = anatomy_of(model).linears(model)
    for which in (model, after):
        for name, role in roles.items():
            if role in Rotate().roles:
                main_linear(which.get_submodule(name)).register_forward_pre_hook(
                    lambda _, args, name=name: read.setdefault(name, []).append(args[0].double())
                )
        run(which, inputs)
    assert len(read) == sum(role in Rotate().roles for role in roles.values())
    for name, (plain, turned) in read.items():
        assert not torch.allclose(plain, turned, rtol=1e-2), name
        assert turned.norm() == pytest.approx(float(plain.norm()), rel=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_stays_in_float64_to_the_last_digits(family: str) -> None:
    model, inputs = make(family)
    model = model.double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    before, after = run(model, inputs), run(rotated(model), inputs)
    assert float((after - before).norm() / before.norm()) <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_outputs_cost_nothing(family: str) -> None:
    model, _ = make(family)
    after = rotated(model)
    roles = anatomy_of(model).linears(model)
    for name, role in roles.items():
        online = isinstance(after.get_submodule(name), TransformedLinear)
        assert online == (role in (Role.QKV, Role.MLP_IN, Role.MLP_OUT)), name
    assert any(role is Role.ATTENTION_OUT for role in roles.values())
    after = rotated(model, heads=False)
    assert all(
        isinstance(after.get_submodule(name), TransformedLinear)
        for name, role in roles.items()
        if role is Role.ATTENTION_OUT
    )


def test_values_stay_inside_their_heads() -> None:
    model, _ = make("dit")
    after = rotated(model)
    old, new = (m.transformer_blocks[0].attn1.to_out[0].weight.double() for m in (model, after))
    matrix = torch.linalg.lstsq(old, new).solution  # new = old R; 24 x 24, of full rank
    inside = torch.block_diag(*[torch.ones(12, 12)] * 2).bool()
    assert float(matrix[~inside].abs().max()) < 1e-4
    torch.testing.assert_close(matrix[inside].abs(), torch.full((288,), 12**-0.5, dtype=torch.float64))


def test_query_key_and_value_share_one_rotation() -> None:
    model, _ = make("dit")
    block = rotated(model).transformer_blocks[1]
    attention = block.attn1
    assert attention.to_q.transform is attention.to_k.transform is attention.to_v.transform
    assert isinstance(attention.to_q.transform, Hadamard)
    assert attention.to_q.transform.factors == (12, 2)
    assert block.ff.net[2].transform.factors == (12, 8)


def test_an_outlier_is_spread() -> None:
    """A single channel of 1 becomes ±1/sqrt(n) everywhere: the largest magnitude falls by sqrt(n)."""
    model, _ = make("dit")
    transform = rotated(model).transformer_blocks[0].ff.net[2].transform
    spread = transform(torch.eye(96))
    torch.testing.assert_close(spread.abs(), torch.full((96, 96), 1 / math.sqrt(96)))


def test_signs_come_from_the_seed() -> None:
    model, _ = make("dit")
    first, same, other = (rotated(model, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("settings", [{}, {"matrix": "block", "block": 8}, {"roles": ["mlp_in"]}])
def test_the_plan_has_the_structure_of_the_result(settings: dict[str, Any]) -> None:
    model, _ = make("sd3")
    planned = copy.deepcopy(model)
    Rotate(**settings).plan(denoiser_of(model), planned)
    after = rotated(model, **settings)
    shapes = [
        {key: (value.shape, value.dtype) for key, value in module.state_dict().items()}
        for module in (planned, after)
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > len(model.state_dict())
    assert [str(m) for m in planned.modules()] == [str(m) for m in after.modules()]


def test_only_the_named_roles_are_rotated() -> None:
    model, _ = make("dit")
    after = rotated(model, roles=["mlp_out"])
    wrapped = [name for name, module in after.named_modules() if isinstance(module, TransformedLinear)]
    assert wrapped == ["transformer_blocks.0.ff.net.2", "transformer_blocks.1.ff.net.2"]
    assert torch.equal(
        after.transformer_blocks[0].attn1.to_out[0].weight, model.transformer_blocks[0].attn1.to_out[0].weight
    )


def test_refusals_name_the_layer_and_the_remedy() -> None:
    model, _ = make("dit")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"attn1\.to_q: a block of 64 does not rotate 24 channels; set rota"):
        rotated(model, matrix="block")
    odd = tiny_dit(num_attention_heads=2, attention_head_dim=26)  # 52 = 4 * 13 has no known matrix here
    with pytest.raises(InputError, match=r"attn1\.to_out\.0: heads of 26 features: no Hadamard matrix"):
        rotated(odd)
    with pytest.raises(InputError, match=r"attn1\.to_q: 52 features: .*; set rotate.matrix: block"):
        rotated(odd, heads=False)
    with pytest.raises(InputError, match="no linear of the model has a role"):
        rotated(model, roles=["other"])
    broken = copy.deepcopy(model)
    broken.transformer_blocks[1].ff.net[2].weight[3, 3] = math.nan
    with pytest.raises(InputError, match=r"transformer_blocks\.1\.ff\.net\.2\.weight holds NaN"):
        Rotate().apply(denoiser_of(broken), {})
    same = broken.state_dict()
    assert all(torch.equal(same[key], state[key]) for key in state if not key.endswith("1.ff.net.2.weight"))


def test_rotations_come_after_smoothing_and_before_quantization() -> None:
    check_order([Smooth(), Rotate(), Quantize()])
    for stages in ([Rotate(), Smooth()], [Quantize(), Rotate()], [Rotate(), Rotate()]):
        with pytest.raises(InputError, match="must not come after"):
            check_order(stages)
