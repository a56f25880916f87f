"""The stage ``distill-guidance``: its target is what the pipeline computes, and the result needs one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from tiny_dit import CLASSES, tiny_dit, tiny_pipeline
from torch import Tensor

from ditpress.calibrate.calls import Call, record_calls
from ditpress.compress import DistillGuidance, check_order, parse_stage
from ditpress.compress.distill.guidance import conditional, guided, thinned, without_condition
from ditpress.compress.distill.trajectories import record_trajectories
from ditpress.compress.stage import RunContext
from ditpress.errors import InputError
from ditpress.load import Denoiser, PixelDiTPipeline, load_denoiser
from ditpress.load.checkpoint import save_pipeline
from ditpress.load.pipelines import LatentDiTPipeline
from ditpress.recipes.skeleton import planned
from ditpress.validate.paired import output_sqnr

SCALE = 3.0
QUICK: dict[str, Any] = {
    "guidance": SCALE,
    "samples": 16,
    "sampling_steps": 4,
    "batch": 4,
    "training": {"steps": 120, "calls": 2, "learning_rate": 3e-3},
}


def denoiser() -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=2, channels=2))


def stage(**fields: Any) -> DistillGuidance:
    parsed = parse_stage({"distill-guidance": QUICK | fields})
    assert isinstance(parsed, DistillGuidance)
    return parsed


def recorded(model: Denoiser, seed: int = 77) -> tuple[list[Call], list[Tensor]]:
    return record_trajectories(model, samples=6, steps=4, guidance=SCALE, seed=seed, batch_size=6)


def rows_of(pipeline: Any, **arguments: Any) -> set[int]:
    """Rows of the calls of the transformer while ``pipeline`` draws three images."""
    found: set[int] = set()
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: found.add(len(kwargs["hidden_states"])), with_kwargs=True
    )
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    pipeline(class_labels=[0, 1, 2], num_inference_steps=2, generator=generators, **arguments)
    handle.remove()
    return found


def test_the_target_is_what_the_pipeline_gives_to_its_scheduler() -> None:
    model = denoiser()
    scheduler = model.pipeline.scheduler
    seen: list[Tensor] = []
    step = scheduler.step

    def watch(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(output.clone())
        return step(output, *args, **kwargs)

    scheduler.step = watch
    calls, outputs = recorded(model)
    assert len(seen) == len(outputs) == 4
    for call, output, expected in zip(calls, outputs, seen, strict=True):
        torch.testing.assert_close(guided(output, SCALE, 2), expected, rtol=1e-6, atol=1e-6)
        half = conditional(call, CLASSES)
        assert half.kwargs["hidden_states"].shape[0] == half.kwargs["timestep"].shape[0] == 6
        assert half.kwargs["class_labels"].tolist() == [0, 1, 2, 3, 4, 0]
        torch.testing.assert_close(model.transformer(**half.kwargs)[0], output[:6])


def test_a_learned_variance_stays_that_of_the_class() -> None:
    output = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    found = guided(output, 2.5, 3).double()
    a, b = output[:2].double(), output[2:].double()
    torch.testing.assert_close(found[:, :3], (b + 2.5 * (a - b))[:, :3], rtol=1e-6, atol=1e-6)
    assert torch.equal(found[:, 3:], a[:, 3:])


def test_one_pass_comes_near_the_two_of_the_original() -> None:
    model = denoiser()
    calls, outputs = recorded(model)
    halves = [conditional(call, CLASSES) for call in calls]
    targets = [guided(output, SCALE, 2) for output in outputs]

    def error() -> float:
        order = iter(targets)
        return output_sqnr(lambda **_: next(order), model.transformer, halves).total_db

    before = error()
    facts = stage().apply_in_run(model, {}, RunContext(calls, original=denoiser))
    assert error() > before + 6
    assert facts["built_in_guidance"] == SCALE
    assert facts["loss"]["last"] < facts["loss"]["first"]
    assert set(model.transformer.state_dict()) == set(denoiser().transformer.state_dict())


def test_a_pipeline_with_built_in_guidance_draws_in_one_pass(tmp_path: Path) -> None:
    plain = denoiser()
    built = plain.with_built_in_guidance(SCALE)
    assert (plain.built_in_guidance, built.built_in_guidance) == (None, SCALE)
    assert rows_of(plain.pipeline, guidance_scale=SCALE) == {6}
    assert rows_of(built.pipeline) == rows_of(built.pipeline, guidance_scale=SCALE) == {3}
    with pytest.raises(InputError, match=r"guidance_scale 1\.5: this model has guidance of scale 3 built in"):
        rows_of(built.pipeline, guidance_scale=1.5)
    assert built.default_guidance == SCALE
    other = built.with_transformer(denoiser().transformer)
    assert other.built_in_guidance == SCALE
    save_pipeline(built, tmp_path / "model")
    again = load_denoiser(str(tmp_path / "model"))
    assert isinstance(again.pipeline, PixelDiTPipeline)
    assert again.built_in_guidance == SCALE
    # One pass of the built-in pipeline is the unguided pass of the plain one.
    same = plain.sample([5, 6], steps=3, guidance=1.0)
    assert torch.equal(built.sample([5, 6], steps=3), same)


def test_the_pipeline_of_diffusers_becomes_one_that_guides_no_second_time() -> None:
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    scheduler = tiny_pipeline().scheduler
    transformer = tiny_dit(channels=4)
    model = load_denoiser(DiTPipeline(transformer, vae, scheduler, id2label={0: "a, b", 1: "c"}))
    built = model.with_built_in_guidance(2.0)
    assert isinstance(built.pipeline, LatentDiTPipeline)
    assert built.pipeline.vae is vae
    assert built.built_in_guidance == 2.0
    assert rows_of(built.pipeline, output_type="latent") == {3}


def test_refusals() -> None:
    model = denoiser()
    with pytest.raises(InputError, match=r"guidance 1: there is no guidance at 1; give the scale"):
        planned(model, [stage(guidance=1.0)])
    with pytest.raises(InputError, match="there is no original to learn from"):
        stage().apply(model, {})
    single = record_calls(model, samples=2, steps=2, guidance=1.0, seed=0)
    with pytest.raises(InputError, match=r"recorded without guidance; set calibration\.guidance above 1"):
        stage().apply_in_run(model, {}, RunContext(single, original=denoiser))
    call = record_calls(model, samples=2, steps=1, guidance=2.0, seed=0)[0]
    call.kwargs["hidden_states"][0, 0, 0, 0] += 1.0
    with pytest.raises(InputError, match="halves differ in more than their classes"):
        conditional(call, CLASSES)
    text = Call(1.0, {"hidden_states": torch.ones(2, 3)})
    with pytest.raises(InputError, match="without class_labels"):
        conditional(text, CLASSES)
    with pytest.raises(InputError, match="stage distill must not come after distill-guidance; put distill"):
        check_order([parse_stage("distill-guidance"), parse_stage("distill")])
    check_order([parse_stage("distill"), parse_stage("distill-guidance"), parse_stage("quantize")])


def test_rows_without_a_class_are_found_in_what_a_pipeline_gives() -> None:
    calls, _ = recorded(denoiser())
    for call in calls:
        bare = call.kwargs["class_labels"] == CLASSES
        assert bare.sum() == 6
        assert list(without_condition(call)) == bare.nonzero().flatten().tolist()
    alone, _ = record_trajectories(denoiser(), samples=4, steps=2, guidance=1.0, seed=0, batch_size=4)
    assert all(not without_condition(call) for call in alone)


def prompted(negative_first: bool, prompts: Tensor, images: int = 3) -> Call:
    """A call as text pipelines make it: embeddings and pooled ones, the empty prompt beside each."""
    x = torch.randn(images, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    empty = torch.zeros(images, 5, 8)
    halves = (empty, prompts) if negative_first else (prompts, empty)
    embeddings = torch.cat(halves)
    kwargs = {
        "hidden_states": torch.cat([x, x]),
        "timestep": torch.full((2 * images,), 7.0),
        "encoder_hidden_states": embeddings,
        "pooled_projections": embeddings.mean(1),
        "return_dict": False,
    }
    return Call(7.0, kwargs)


def test_rows_without_a_prompt_are_found_on_either_side() -> None:
    prompts = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))
    assert list(without_condition(prompted(True, prompts))) == [0, 1, 2]
    assert list(without_condition(prompted(False, prompts))) == [3, 4, 5]
    same = prompts[:1].expand(3, -1, -1)  # one prompt for all images: no telling which half is which
    assert not without_condition(prompted(True, same))
    other = prompted(True, prompts)
    other.kwargs["hidden_states"][0] += 1  # no pairs
    assert not without_condition(other)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_rows_without_a_class_stays(share: float) -> None:
    calls, _ = recorded(denoiser())
    rows = thinned(calls, share, torch.Generator().manual_seed(0))
    labels = torch.cat([call.kwargs["class_labels"][own] for call, own in zip(calls, rows, strict=True)])
    whole = 6 * len(calls)
    assert int((labels != CLASSES).sum()) == whole
    assert int((labels == CLASSES).sum()) == int(share * whole)
    assert all(own == sorted(set(own)) for own in rows)
