"""The stage ``distill``: its losses, that it learns, that it resumes to the bit, and what it refuses."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from resume_cases import check_resumed
from safetensors.torch import load_file
from tiny_dit import CLASSES, tiny_flux, tiny_pipeline, tiny_sd3
from torch import nn

from ditpress.calibrate.calls import record_calls
from ditpress.calibrate.data import load_data, noised_calls
from ditpress.compress import Distill, PruneDepth, PruneWidth, check_order, parse_stage
from ditpress.compress.distill import trainer
from ditpress.compress.distill.losses import Features, masked_error, relative_error, typical
from ditpress.compress.distill.optimizer import make_optimizer
from ditpress.compress.distill.resume import FILE, SavedTraining
from ditpress.compress.distill.stage import trained
from ditpress.compress.distill.student_stage import block_pairs, kept_parts
from ditpress.compress.stage import RunContext, complete
from ditpress.errors import InputError, StageError
from ditpress.load import Denoiser, Role, anatomy_of, load_denoiser
from ditpress.recipes.skeleton import planned
from ditpress.validate.paired import output_sqnr

QUICK: dict[str, Any] = {
    "samples": 8,
    "sampling_steps": 4,
    "batch": 4,
    "save_every": 4,
    "training": {"steps": 80, "calls": 2, "learning_rate": 3e-3},
}


def denoiser() -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=2, num_layers=4))


def stage(**fields: Any) -> Distill:
    parsed = parse_stage({"distill": QUICK | fields})
    assert isinstance(parsed, Distill)
    return parsed


def pruned(keep: tuple[int, ...] = (0, 2)) -> tuple[Denoiser, RunContext]:
    model = denoiser()
    facts = PruneDepth(keep=keep).apply_calls(model, {}, ())
    return model, RunContext(original=denoiser, facts=[{}, facts])


def test_two_sigmas_of_every_sample() -> None:
    x = np.random.default_rng(0).standard_t(2, size=(3, 5, 7)).astype(np.float32)
    mean, deviation = x.mean(axis=(1, 2), keepdims=True), x.std(axis=(1, 2), keepdims=True)
    expected = np.abs(x - mean) < 2 * deviation
    assert 0 < (~expected).sum() < expected.size / 4
    np.testing.assert_array_equal(typical(torch.from_numpy(x), 2.0).numpy(), expected)


def test_the_masked_error_leaves_out_outliers_of_both() -> None:
    rng = np.random.default_rng(1)
    s, t = (rng.standard_normal((2, 6, 8)).astype(np.float32) for _ in range(2))
    s[0, 1, 2], t[0, 3, 4], t[1, 0, 0] = 90.0, -70.0, 50.0
    kept = np.ones_like(s, dtype=bool)
    for x in (s, t):
        kept &= np.abs(x - x.mean((1, 2), keepdims=True)) < 2 * x.std((1, 2), keepdims=True)
    assert not kept[0, 1, 2]
    assert not kept[0, 3, 4]
    student = torch.from_numpy(s).requires_grad_()
    loss = masked_error(student, torch.from_numpy(t))
    assert loss.item() == pytest.approx(((s - t)[kept] ** 2).sum() / (t[kept] ** 2).sum(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    assert (gradient.numpy() == 0).tolist() == (~kept).tolist()
    assert relative_error(student, torch.from_numpy(t)).item() > loss.item()


def test_blocks_are_compared_where_the_next_kept_one_begins() -> None:
    model, _ = pruned((0, 2))
    blocks = "transformer_blocks"
    found = block_pairs(model.transformer, denoiser().transformer, model.anatomy, {blocks: [0, 2]})
    assert found == [(f"{blocks}.0", f"{blocks}.1"), (f"{blocks}.1", f"{blocks}.3")]
    whole = denoiser()
    same = block_pairs(whole.transformer, whole.transformer, whole.anatomy, {})
    assert same == [(f"{blocks}.{i}", f"{blocks}.{i}") for i in range(4)]
    flux, _ = tiny_flux()
    small = copy.deepcopy(flux)
    small.single_transformer_blocks = nn.ModuleList([flux.single_transformer_blocks[1]])
    pairs = block_pairs(small, flux, anatomy_of(flux), {"single_transformer_blocks": [1]})
    assert pairs[-1] == ("single_transformer_blocks.0", "single_transformer_blocks.1")
    assert pairs[:2] == [(f"{blocks}.{i}", f"{blocks}.{i}") for i in range(2)]


@pytest.mark.parametrize("family", [tiny_sd3, tiny_flux])
def test_blocks_are_compared_in_the_channels_that_stayed(family: Callable[[], Any]) -> None:
    """Text and image have other numbers of tokens, and in SD3 other channels each."""
    teacher, inputs = family()
    kept = {"pos_embed": [1, 4, 6], "context_embedder": [0, 2, 3, 15], "x_embedder": [3, 5]}
    by_tokens = {
        SD3Transformer2DModel: {16: "pos_embed", 5: "context_embedder"},
        FluxTransformer2DModel: {9: "x_embedder", 5: "x_embedder"},
    }[type(teacher)]
    blocks = [
        f"{block_list}.{index}"
        for block_list in anatomy_of(teacher).block_lists(teacher)
        for index in range(len(getattr(teacher, block_list)))
    ]
    features = Features(teacher, blocks)
    with torch.no_grad():
        teacher(**inputs)
    given = features.take()
    assert len(given[0]) == 2
    assert len(given[-1]) == (1 if family is tiny_sd3 else 2)  # its last block gives no text
    for parts in given:
        for whole, part in zip(parts, kept_parts(teacher, kept)(parts), strict=True):
            assert torch.equal(part, whole[..., kept[by_tokens[whole.shape[1]]]])
        assert all(a is b for a, b in zip(kept_parts(teacher, {})(parts), parts, strict=True))


def test_a_narrower_stream_learns_from_its_own_channels() -> None:
    original = denoiser()
    calls = record_calls(original, samples=6, steps=4, guidance=2.0, seed=77)
    model = denoiser()
    prune = PruneWidth(residual=0.25, round_to={"residual": 4})
    facts = prune.apply_calls(model, {}, calls)
    context = RunContext(original=denoiser, facts=[json.loads(json.dumps(facts))])
    before = output_sqnr(original.transformer, model.transformer, calls).total_db
    stage().apply_in_run(model, {}, context)
    assert output_sqnr(original.transformer, model.transformer, calls).total_db > before + 3
    with pytest.raises(InputError, match=r"cannot be compared, set training\.features to 0"):
        stage().apply_in_run(model, {}, RunContext(original=denoiser, facts=[{}]))


@pytest.mark.parametrize("fields", [{}, {"feature_loss": "normalized"}])
def test_distillation_lowers_the_error_on_calls_it_has_not_seen(fields: dict[str, Any]) -> None:
    original = denoiser()
    calls = record_calls(original, samples=6, steps=4, guidance=2.0, seed=77)
    model, context = pruned()
    before = output_sqnr(original.transformer, model.transformer, calls).total_db
    facts = stage(**fields).apply_in_run(model, {}, context)
    after = output_sqnr(original.transformer, model.transformer, calls).total_db
    assert after > before + 5
    assert facts["loss"]["last"] < facts["loss"]["first"]
    assert not any(p.requires_grad or p.grad is not None for p in model.transformer.parameters())
    embedders = {id(block.norm1.emb) for block in model.transformer.transformer_blocks}
    assert len(embedders) == 1


def test_only_the_named_roles_are_trained() -> None:
    model, context = pruned()
    before = copy.deepcopy(model.transformer.state_dict())
    short = QUICK["training"] | {"steps": 3}
    stage(train=["mlp_out"], training=short).apply_in_run(model, {}, context)
    changed = {n for n, t in model.transformer.state_dict().items() if not torch.equal(t, before[n])}
    expected = {f"transformer_blocks.{i}.ff.net.2.{part}" for i in range(2) for part in ("weight", "bias")}
    assert changed == expected
    everything = trained(model.transformer, model.anatomy, None)
    assert {id(p) for p in everything} == {id(p) for p in model.transformer.parameters()}
    names = [n for n, r in model.anatomy.linears(model.transformer).items() if r is Role.QKV]
    assert len(trained(model.transformer, model.anatomy, [Role.QKV])) == 2 * len(names)


def test_data_take_the_place_of_trajectories(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((12, 1, 8, 8)).astype(np.float32)
    np.savez(path, latents=latents, labels=np.arange(12) % CLASSES)
    original = denoiser()
    found = load_data(path, original)
    calls = noised_calls(original, found, samples=6, steps=4, guidance=2.0, seed=77, batch_size=6)
    model, context = pruned()
    before = output_sqnr(original.transformer, model.transformer, calls).total_db
    stage(data=str(path)).apply_in_run(model, {}, context)
    assert output_sqnr(original.transformer, model.transformer, calls).total_db > before + 5
    plain, _ = pruned()
    stage().apply_in_run(plain, {}, context)
    state = plain.transformer.state_dict()
    assert not all(torch.equal(t, state[name]) for name, t in model.transformer.state_dict().items())
    # The learned masks of prune-depth see them too.
    learned = {"rows": 6, "rank": 2, "training": {"steps": 3, "calls": 2}}
    recorded = record_calls(original, samples=3, steps=4, guidance=2.0, seed=0)
    facts = [
        parse_stage({"prune-depth": fields | {"learned": learned}}).apply_calls(denoiser(), {}, recorded)
        for fields in ({"data": str(path)}, {"data": str(path)}, {})
    ]
    assert facts[0] == facts[1] != facts[2]


def test_the_data_of_a_recipe_are_known_by_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, latents=np.zeros((2, 1, 8, 8), np.float32), labels=np.zeros(2, np.int64))
    (completed,) = complete([stage(data=str(path))])
    assert isinstance(completed, Distill)
    assert completed.data_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert complete([completed]) == (completed,)
    assert complete([stage()])[0].model_dump()["data_sha256"] is None
    planned(denoiser(), [completed])
    np.savez(path, latents=np.zeros((2, 3, 8, 8), np.float32), labels=np.zeros(2, np.int64))
    with pytest.raises(InputError, match=r"is another file than .* set distill\.data_sha256=null"):
        complete([completed])
    with pytest.raises(InputError, match=r"latents are torch\.float32 \[2, 3, 8, 8\]"):
        planned(denoiser(), [stage(data=str(path))])
    with pytest.raises(InputError, match=r"distill\.data nowhere: no such file"):
        complete([stage(data="nowhere")])


@pytest.mark.parametrize("ema", [None, 0.9])
def test_resumed_training_ends_in_the_same_bits(
    ema: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = QUICK["training"] | {"steps": 14, "ema": ema}

    def learn(work: Path | None) -> tuple[Denoiser, Any]:
        model, context = pruned()
        return model, stage(training=training).apply_in_run(model, {}, replace(context, work=work))

    check_resumed(learn, tmp_path / "work", monkeypatch, steps=14, killed=11, saved=8)


def test_a_damaged_state_is_told_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(b"no such thing")
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    assert SavedTraining(tmp_path, 1).load([parameter], optimizer, None) == []
    assert "training starts anew" in caplog.text
    assert not optimizer.state


def test_a_gradient_that_is_not_finite_stops_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = pruned()
    seen: list[dict[str, torch.Tensor]] = []
    norm = torch.nn.utils.clip_grad_norm_

    def explode(parameters: Any, limit: float) -> torch.Tensor:
        found = norm(parameters, limit)
        seen.append({n: t.clone() for n, t in model.transformer.state_dict().items()})
        return found * (float("inf") if len(seen) == 3 else 1)

    monkeypatch.setattr(trainer.torch.nn.utils, "clip_grad_norm_", explode)
    with pytest.raises(StageError, match="the gradient is inf at step 2; lower the learning rate"):
        stage().apply_in_run(model, {}, context)
    after = model.transformer.state_dict()
    assert all(torch.equal(tensor, seen[2][name]) for name, tensor in after.items())
    assert not all(torch.equal(tensor, seen[0][name]) for name, tensor in after.items())


def test_a_rate_far_too_high_leaves_finite_weights() -> None:
    model, context = pruned()
    training = QUICK["training"] | {"learning_rate": 1e30, "warmup": 0.0, "clip": None}
    with pytest.raises(StageError, match=r"the (loss|gradient) is (nan|inf) at step \d+; lower"):
        stage(training=training).apply_in_run(model, {}, context)
    assert all(tensor.isfinite().all() for tensor in model.transformer.state_dict().values())


@pytest.mark.parametrize("broken", [6, 8])
def test_a_loss_that_turns_nan_stops_and_keeps_the_last_good_state(
    broken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = pruned()
    parameters = list(model.transformer.parameters())
    good: list[torch.Tensor] = []
    steps, taken = torch.optim.AdamW.step, 0

    def step(self: torch.optim.AdamW, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 5:  # four steps are done
            good.extend(parameter.detach().clone() for parameter in parameters)
        found = steps(self, *args)
        if taken == broken:
            with torch.no_grad():
                parameters[3].fill_(float("nan"))
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    work = tmp_path / "work"
    context = RunContext(original=context.original, facts=context.facts, work=work)
    message = (
        f"the loss is nan at step {broken}; lower the learning rate. The state after 4 steps is kept in "
    )
    with pytest.raises(StageError, match=re.escape(message + str(work / FILE))):
        stage().apply_in_run(model, {}, context)
    saved = load_file(work / FILE)
    assert all(torch.equal(saved[f"{i}.parameter"], tensor) for i, tensor in enumerate(good))
    assert len(saved["history"]) == 4
    assert saved["history"].isfinite().all()


def test_moments_of_8_bits_are_refused_without_a_gpu_or_their_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, context = pruned()
    training = QUICK["training"] | {"optimizer": "adamw8bit"}
    with pytest.raises(
        InputError, match="adamw8bit: its kernels need a GPU, the model is on cpu; give --dev"
    ):
        stage(training=training).apply_in_run(model, {}, context)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(InputError, match="needs bitsandbytes, which is not installed; pip install"):
        make_optimizer("adamw8bit", [{"params": [on_gpu], "lr": 1.0}], 0.0)


class CountsInPython(torch.optim.SGD):
    """Keeps what the optimizers of bitsandbytes keep: bytes, tables, and a count in Python."""


def test_any_optimizer_resumes(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(3))
    state = {"step": 7, "state1": torch.arange(3, dtype=torch.uint8), "qmap1": torch.rand(4)}
    optimizer = CountsInPython([parameter])
    optimizer.state[parameter] = dict(state)
    SavedTraining(tmp_path, 1).save([parameter], optimizer, [torch.zeros(3)], [0.5, 0.25])
    other, average = CountsInPython([parameter]), [torch.ones(3)]
    assert SavedTraining(tmp_path, 1).load([parameter], other, average) == [0.5, 0.25]
    found = other.state[parameter]
    assert found.keys() == state.keys()
    assert (found["step"], type(found["step"])) == (7, int)
    assert torch.equal(found["state1"], state["state1"])
    assert torch.equal(found["qmap1"], state["qmap1"])
    assert torch.equal(average[0], torch.zeros(3))
    assert SavedTraining(tmp_path, 1).steps() == 2


def test_refusals() -> None:
    model, context = pruned()
    with pytest.raises(InputError, match="there is no original to learn from"):
        stage().apply(model, {})
    with pytest.raises(InputError, match=r"no linears of other; expected some of .*qkv"):
        stage(train=["other"]).apply_in_run(model, {}, context)
    with pytest.raises(InputError, match="has 2 blocks, expected 4 of the original's 4; put prune-depth"):
        stage().apply_in_run(model, {}, RunContext(original=context.original))
    narrow = load_denoiser(tiny_pipeline(num_attention_heads=1, num_layers=4))
    with pytest.raises(InputError, match=r"transformer_blocks\.0: gives .*set training\.features to 0"):
        stage().apply_in_run(narrow, {}, RunContext(original=context.original))
    with pytest.raises(InputError, match="distill must not come after smooth"):
        check_order([parse_stage("smooth"), parse_stage("distill")])
