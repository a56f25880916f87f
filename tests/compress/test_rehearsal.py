"""What the search of smoothing foretells, against what the stages then make of the same linear."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ditpress.compress import Quantize, Smooth, Stage, SubspaceStage
from ditpress.compress.quantize.layer import SECOND_MOMENT, LayerPlan, quantize_linear
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.rehearsal import Rehearsal
from ditpress.compress.stage import complete
from ditpress.compress.subspace import principal_directions
from ditpress.kernels.transforms import Subspace
from ditpress.kernels.wrap import SubspaceLinear
from ditpress.load.anatomy import Role

GPTQ = WeightSpec(format="int4", group=16, rounding="gptq", fold_scales=True)


def problem() -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear, inputs with a mean and with outlier channels, and their second moment."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 48, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.randn(48, 64, generator=generator))
    x = torch.randn(300, 64, generator=generator) + 0.5
    x[:, :3] *= 12.0
    return linear, x, (x.T @ x) / len(x)


@pytest.mark.parametrize("activation", ["int8", "int4"])
@pytest.mark.parametrize("rank", [0, 4])
def test_outputs_are_those_of_the_stages(rank: int, activation: str) -> None:
    linear, x, moment = problem()
    found = Rehearsal(GPTQ, activation, 16, rank).outputs(x, linear.weight, moment, "layer")  # type: ignore[arg-type]
    plan = LayerPlan(GPTQ, activation)  # type: ignore[arg-type]
    if rank == 0:
        expected = quantize_linear(linear, plan, "layer", {SECOND_MOMENT: moment})(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        return
    split = Subspace.rounded(principal_directions(moment, rank))
    rest = split(x)
    main = quantize_linear(linear, plan, "layer", {SECOND_MOMENT: (rest.T @ rest) / len(rest)})
    up = nn.Linear(rank, 48, bias=False).requires_grad_(False)  # in float: the stage stores it in 8 bits
    up.weight.copy_(linear.weight @ split.matrix().T)
    expected = SubspaceLinear(split, main, up)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_principal_directions_take_the_outliers() -> None:
    linear, x, moment = problem()
    exact = x @ linear.weight.T
    plain, split = (
        float((Rehearsal(GPTQ, "int4", 16, rank).outputs(x, linear.weight, moment, "layer") - exact).norm())
        for rank in (0, 4)
    )
    assert split < plain / 2


def test_nearest_knows_no_moment() -> None:
    linear, _, _ = problem()
    nearest = GPTQ.model_copy(update={"rounding": "nearest"})
    layer = quantize_linear(linear, LayerPlan(nearest, "none"), "layer", {})
    expected = layer(torch.eye(64)).T
    torch.testing.assert_close(Rehearsal(GPTQ, "none", 16).nearest(linear.weight, "layer"), expected)


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ([Quantize(weights=GPTQ, activations="int4")], None),
        ([SubspaceStage(rank=3), Quantize(weights=GPTQ, activations="int4")], SubspaceStage(rank=3)),
    ],
)
def test_smooth_takes_over_what_follows(later: Sequence[Stage], expected: SubspaceStage | None) -> None:
    first = complete([Smooth(alpha="search"), *later])[0]
    assert isinstance(first, Smooth)
    assert (first.weights, first.activations, first.split) == (GPTQ, "int4", expected)
    own = complete([Smooth(alpha="search", split=SubspaceStage(rank=1)), *later])[0]
    assert isinstance(own, Smooth)
    assert own.split == SubspaceStage(rank=1)
    fixed = complete([Smooth(alpha=0.5), *later])[0]
    assert isinstance(fixed, Smooth)
    assert fixed.split is None
    # As a resumed run reads it from its recipe.
    assert Smooth.model_validate(first.model_dump(mode="json")) == first


def test_only_roles_that_are_split() -> None:
    linear = nn.Linear(64, 48)
    stage = Smooth(
        alpha="search",
        weights=GPTQ,
        activations="int4",
        split=SubspaceStage(rank=3, share=0.5, roles=(Role.QKV,)),
    )
    assert stage.rehearsal([linear], Role.QKV).rank == 3
    assert stage.rehearsal([linear], Role.MLP_IN).rank == 0
