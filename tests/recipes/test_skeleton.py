"""What stages plan in a model without numbers is what they make of the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from tiny_dit import tiny_pipeline
from torch import Tensor, nn
from wrapped_models import wrap_dit

from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import Call, record_calls
from ditpress.compress import Stage, parse_stage
from ditpress.kernels.transforms import Hadamard
from ditpress.kernels.wrap import LowRankLinear, TransformedLinear
from ditpress.load import Denoiser, load_denoiser
from ditpress.load.modules import replace_module
from ditpress.recipes.estimate import role_table
from ditpress.recipes.skeleton import planned, skeleton
from ditpress.recipes.steps import apply_stage
from ditpress.recipes.storage import storage
from ditpress.validate.size import size_of, stored_modules


class Rotate(Stage):
    """Rotates what the second linears of the MLPs read, with a branch beside them; the simplest there is."""

    kind: Literal["rotate"] = "rotate"

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        for block in skeleton.transformer_blocks:
            linear = block.ff.net[2]
            branch = LowRankLinear.empty(linear, device="meta", rank=2)
            empty = Hadamard.empty(linear.in_features, "meta", factors=(16, 16))
            replace_module(skeleton, linear, TransformedLinear(empty, branch))

    def apply(self, denoiser: Denoiser, statistics: Mapping[Any, Tensor]) -> None:
        for block in denoiser.transformer.transformer_blocks:
            linear = block.ff.net[2]
            branch = LowRankLinear.empty(linear, rank=2)
            for part in (branch.down, branch.up):
                part.weight.fill_(0.5)
            transform = Hadamard.random((16, 16), linear.in_features, torch.Generator().manual_seed(0))
            replace_module(denoiser.transformer, linear, TransformedLinear(transform, branch))


class Watch(Stage):
    """Notes the calls that it is given."""

    kind: Literal["watch"] = "watch"
    seen: ClassVar[list[int]] = []

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Any, Tensor], calls: Sequence[Call]
    ) -> None:
        self.seen.append(len(calls))

    def apply(self, denoiser: Denoiser, statistics: Mapping[Any, Tensor]) -> None:
        raise AssertionError("apply_calls stands in for it")


class WatchCalls(Watch):
    needs_calls: ClassVar[bool] = True


@pytest.fixture
def denoiser() -> Denoiser:
    return load_denoiser(tiny_pipeline(num_attention_heads=4, attention_head_dim=16))


def structure(model: nn.Module) -> dict[str, Any]:
    kinds = {name: type(module) for name, module in model.named_modules()}
    tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    settings = {name: module.extra_repr() for name, module in model.named_modules()}
    return {"kinds": kinds, "tensors": tensors, "settings": settings}


@pytest.mark.parametrize("stages", [["smooth"], ["smooth", "quantize"], ["rotate"], ["rotate", "quantize"]])
@pytest.mark.parametrize("wrapped", [False, True])
def test_planned_is_applied(denoiser: Denoiser, stages: list[str], wrapped: bool) -> None:
    if wrapped:
        wrap_dit(denoiser.transformer)
    calls = record_calls(denoiser, samples=1, steps=2, guidance=1.0, seed=0)
    parsed = [Rotate() if name == "rotate" else parse_stage(name) for name in stages]
    before = skeleton(denoiser.transformer)
    kept = structure(denoiser.transformer)
    plan = planned(denoiser, parsed)
    assert structure(denoiser.transformer) == kept
    if stages != ["smooth"]:
        assert structure(plan) != kept
    for stage in parsed:
        stage.apply(denoiser, Calibration(calls).collect(denoiser.transformer, stage.wants(denoiser)))
    made = denoiser.transformer
    assert structure(plan) == structure(made)
    assert size_of(before, plan) == size_of(before, made)
    assert all(tensor.untyped_storage().nbytes() <= 8 for tensor in skeleton(made).state_dict().values())


def test_calls_go_to_the_stages_that_need_them(denoiser: Denoiser, tmp_path: Path) -> None:
    calls = record_calls(denoiser, samples=1, steps=3, guidance=1.0, seed=0)
    Watch.seen.clear()
    for index, stage in enumerate((Watch(), WatchCalls())):
        (tmp_path / str(index)).mkdir()
        assert apply_stage(stage, denoiser, calls, tmp_path / str(index)) == {"layer_errors": {}}
    assert Watch.seen == [0, len(calls)]
    assert calls


def test_errors_are_those_of_the_layers_that_became_low_bit(denoiser: Denoiser, tmp_path: Path) -> None:
    calls = record_calls(denoiser, samples=1, steps=2, guidance=1.0, seed=0)
    plain = set(denoiser.anatomy.linears(denoiser.transformer))
    wrap_dit(denoiser.transformer)
    reference = copy.deepcopy(denoiser.transformer)
    stage = parse_stage({"quantize": {"activations": "none"}})
    facts = apply_stage(stage, denoiser, calls, tmp_path / "quantized")
    kept = {name for name in plain if "proj_out" in name or ".emb." in name}
    assert set(facts["layer_errors"]) == plain - kept
    name = "transformer_blocks.0.ff.net.2"
    weight, output, by_timestep = facts["layer_errors"][name]
    basis = torch.cat([torch.zeros(1, 256), torch.eye(256)])
    before, after = (model.get_submodule(name)(basis).double() for model in (reference, denoiser.transformer))
    weights = [y[1:] - y[0] for y in (before, after)]  # affine, without rounding of the inputs
    assert weight == pytest.approx(float((weights[1] - weights[0]).norm() / weights[0].norm()), rel=1e-3)
    assert 0 < weight < 0.3
    assert output > 10
    assert [step for step, _ in by_timestep] == [call.timestep for call in calls]
    assert min(db for _, db in by_timestep) <= output <= max(db for _, db in by_timestep)


def test_tables_tell_what_is_around_a_linear(denoiser: Denoiser) -> None:
    wrap_dit(denoiser.transformer)
    after = planned(denoiser, [parse_stage("quantize")])
    rows = {(row.role, row.format): row for row in role_table(denoiser, after)}
    channel = "int4, channel, int8 inputs"
    last = "int4, group 64, int8 inputs, channel-scale, hadamard, shift, low rank 3"
    assert set(rows) == {
        ("embedder", "as it is"),
        ("final", "as it is"),
        ("modulation", "int8, channel"),
        ("qkv", f"{channel}, hadamard"),
        ("attention_out", channel),
        ("mlp_in", f"{channel}, low rank 3"),
        ("mlp_out", last),
    }
    assert rows["mlp_out", last].parameters == 2 * (256 * 64 + 64)
    assert storage(denoiser.transformer.transformer_blocks[0].ff.net[0].proj) == "float, low rank 3"


def test_what_wrappers_add_takes_bits_but_holds_no_parameters(denoiser: Denoiser) -> None:
    before = skeleton(denoiser.transformer)
    wrap_dit(denoiser.transformer)
    size = size_of(before, denoiser.transformer)
    assert size.parameters == sum(parameter.numel() for parameter in before.parameters())
    stored = stored_modules(denoiser.transformer)
    last = "transformer_blocks.1.ff.net.2"
    assert stored[f"{last}.transform"].bits == 32 * 256  # factors
    assert stored[f"{last}.linear.transform"].bits == 8 * 256  # signs; its matrix is made anew
    assert stored[f"{last}.linear.linear.transform"].bits == 32
    branch = f"{last}.linear.linear.linear"
    assert stored[f"{branch}.down"].bits == 32 * 3 * 256
    assert stored[f"{branch}.up"].bits == 32 * 3 * 64
    added = [name for name in stored if name.endswith((".transform", ".down", ".up"))]
    assert len(added) == 2 * 8
    assert {stored[name].parameters for name in added} == {0}
    shared = [name for name in stored if ".attn1." in name and name.endswith("transform")]
    assert shared == [f"transformer_blocks.{index}.attn1.to_q.transform" for index in range(2)]
