"""The pipelines and the denoiser: against the DDIM equation, diffusers' own pipeline, and themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    ImagePipelineOutput,
)
from tiny_dit import CLASSES, tiny_dit, tiny_pipeline

from ditpress.errors import InputError
from ditpress.load import LatentDiTPipeline, PixelDiTPipeline, load_denoiser, stepbar


def ddim(
    model: torch.nn.Module, noise: np.ndarray, label: int, steps: int, guidance: float, clip: bool = False
) -> np.ndarray:
    """DDIM, eta = 0 (Song et al. 2021, eq. 12), classifier-free guidance (Ho & Salimans 2022, eq. 6).

    ``clip`` keeps x0 in -1..1 and takes the noise that, with that x0, adds up to x.
    """
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000, dtype=np.float64))
    times = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1  # "trailing"
    x = noise.astype(np.float64)

    def epsilon(t: int, y: int) -> np.ndarray:
        arguments = {"hidden_states": torch.tensor(x)[None], "timestep": torch.tensor([t])}
        return model(**arguments, class_labels=torch.tensor([y])).sample[0].numpy()

    for t in times:
        e = epsilon(t, label)
        if guidance > 1:
            null = epsilon(t, CLASSES)
            e = null + guidance * (e - null)
        before = t - 1000 // steps
        a, a_before = alphas[t], alphas[before] if before >= 0 else 1.0
        start = (x - np.sqrt(1 - a) * e) / np.sqrt(a)
        if clip:
            start = np.clip(start, -1, 1)
            e = (x - np.sqrt(a) * start) / np.sqrt(1 - a)
        x = np.sqrt(a_before) * start + np.sqrt(1 - a_before) * e
    return x


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_follows_the_ddim_equation(guidance: float, clip: bool) -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler.register_to_config(clip_sample=clip)
    seeds, steps = [11, 12, 13], 5
    images = load_denoiser(pipeline).sample(seeds, steps=steps, guidance=guidance)
    model = pipeline.transformer.double()
    for index, seed in enumerate(seeds):
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))[0].numpy()
        x = ddim(model, noise, index, steps, guidance, clip)
        # What float32 loses grows with the values of the trajectory, which are unbounded without clipping,
        # and guidance g multiplies it: u + g (c - u) holds the errors of both by g + |1 - g|.
        error = (1e-5 + 1e-7 * np.abs(x).max()) * (guidance + abs(1 - guidance))
        np.testing.assert_allclose(images[index].numpy(), np.clip(x / 2 + 0.5, 0, 1), atol=error)


def test_an_image_depends_on_its_seed_only_and_not_on_the_batch() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    together = denoiser.sample([5, 6, 7, 8, 9], steps=3)
    split = denoiser.sample([5, 6, 7, 8, 9], steps=3, batch_size=2)
    torch.testing.assert_close(split, together, rtol=0, atol=1e-5)
    other = denoiser.sample([99, 6], steps=3)
    torch.testing.assert_close(other[1], together[1], rtol=0, atol=1e-5)
    assert (other[0] - together[0]).abs().max() > 1e-3
    assert together.dtype == torch.float32
    assert together.shape == (5, 1, 8, 8)
    assert together.min() >= 0
    assert together.max() <= 1


def test_a_stochastic_sampler_is_as_independent_of_the_batch() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDPMScheduler(clip_sample=False)
    denoiser = load_denoiser(pipeline)
    together = denoiser.sample(range(4), steps=4)
    torch.testing.assert_close(denoiser.sample(range(4), steps=4, batch_size=3), together, rtol=0, atol=1e-5)


def test_no_guidance_does_not_double_the_batch() -> None:
    pipeline = tiny_pipeline()
    sizes: list[tuple[int, list[int]]] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(
            (len(kwargs["hidden_states"]), kwargs["class_labels"].tolist())
        ),
        with_kwargs=True,
    )
    denoiser = load_denoiser(pipeline)
    denoiser.sample([1, 2], steps=1, guidance=1.0)
    denoiser.sample([1, 2], steps=1, guidance=1.5)
    assert sizes == [(2, [0, 1]), (4, [0, 1, CLASSES, CLASSES])]


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    ).eval()


def latent_model(classes: int = 1000) -> torch.nn.Module:
    return tiny_dit(channels=4, out_channels=8, num_embeds_ada_norm=classes)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_latent_pipeline_equals_diffusers_pipeline_with_learned_sigma(guidance: float) -> None:
    parts = {"transformer": latent_model(), "vae": tiny_vae()}
    theirs = DiTPipeline(scheduler=DDIMScheduler(clip_sample=False), **parts)
    ours = LatentDiTPipeline(scheduler=DDIMScheduler(clip_sample=False), **parts)
    theirs.set_progress_bar_config(disable=True)
    ours.set_progress_bar_config(disable=True)
    results = [
        pipeline(
            class_labels=[3, 7],
            guidance_scale=guidance,
            num_inference_steps=4,
            generator=[torch.Generator().manual_seed(i) for i in range(2)],
            output_type="np",
        ).images
        for pipeline in (theirs, ours)
    ]
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)


def test_latents_without_a_vae_are_their_first_channels() -> None:
    pipeline = LatentDiTPipeline(transformer=latent_model(), scheduler=DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)

    def draw(kind: str) -> torch.Tensor:
        return pipeline(
            [1], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type=kind
        )[0]

    latents = draw("latent")
    assert latents.shape == (1, 4, 8, 8)
    torch.testing.assert_close(draw("pt"), ((latents[:, :3] + 3) / 6).clamp(0, 1))


def test_a_dit_pipeline_folder_loads_and_samples_through_diffusers_class(tmp_path: Path) -> None:
    DiTPipeline(transformer=latent_model(), vae=tiny_vae(), scheduler=DDIMScheduler()).save_pretrained(
        tmp_path
    )
    denoiser = load_denoiser(str(tmp_path))
    assert type(denoiser.pipeline) is DiTPipeline
    assert denoiser.default_steps == 50
    assert denoiser.default_guidance == 4.0
    assert denoiser.sample([0, 1], steps=2).shape == (2, 3, 16, 16)


def test_a_dit_pipeline_of_other_class_count_gets_our_null_class(tmp_path: Path) -> None:
    DiTPipeline(transformer=latent_model(7), vae=tiny_vae(), scheduler=DDIMScheduler()).save_pretrained(
        tmp_path
    )
    denoiser = load_denoiser(str(tmp_path))
    assert type(denoiser.pipeline) is LatentDiTPipeline
    assert denoiser.sample([0], steps=1).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("through", ["class", "diffusers"])
def test_pipeline_folder_round_trip(tmp_path: Path, through: str, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = tiny_pipeline()
    pipeline.register_to_config(
        id2label={"0": "zero, nought", "1": "one"}, default_steps=3, default_guidance=1.5
    )
    before = load_denoiser(pipeline).sample([1, 2])
    pipeline.transformer.transformer_blocks[1].norm1.emb = tiny_dit().transformer_blocks[0].norm1.emb
    pipeline.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = (PixelDiTPipeline if through == "class" else DiffusionPipeline).from_pretrained(tmp_path)
    assert type(loaded) is PixelDiTPipeline
    assert "Expected types" not in capfd.readouterr().err
    denoiser = load_denoiser(loaded)
    assert (denoiser.default_steps, denoiser.default_guidance) == (3, 1.5)
    assert torch.equal(denoiser.sample([1, 2]), before)
    assert denoiser.captions([0, 1, 4]) == ["a photo of a zero", "a photo of a one", "a photo of a class 4"]


def test_output_types_agree() -> None:
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def draw(kind: str) -> Any:
        return pipeline(
            [2], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type=kind
        )[0]

    tensor = draw("pt")
    np.testing.assert_array_equal(draw("np"), tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(
        np.asarray(draw("pil")[0]), np.round(tensor[0, 0].numpy() * 255).astype(np.uint8)
    )


def test_conditions_are_the_classes_in_turn() -> None:
    assert load_denoiser(tiny_pipeline()).conditions(7) == [0, 1, 2, 3, 4, 0, 1]


def test_another_transformer_in_the_same_pipeline() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    before = denoiser.sample([4], steps=2)
    other = denoiser.with_transformer(tiny_dit(seed=9))
    assert (other.sample([4], steps=2) - before).abs().max() > 1e-3
    assert torch.equal(denoiser.sample([4], steps=2), before)
    assert other.source == denoiser.source
    assert other.pipeline.scheduler is not denoiser.pipeline.scheduler


def test_bad_arguments_are_named() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    with pytest.raises(InputError, match="no seeds"):
        denoiser.sample([])
    with pytest.raises(InputError, match="steps 0"):
        denoiser.sample([1], steps=0)
    with pytest.raises(InputError, match="class label 9: expected 0 to 4"):
        denoiser.pipeline([9])
    with pytest.raises(InputError, match="output_type 'jpeg'"):
        denoiser.pipeline([0], output_type="jpeg")


class TextPipeline(DiffusionPipeline):
    """A pipeline with prompts, a progress bar of the other kind, and its own name for guidance."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.asked: list[dict[str, Any]] = []

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 28,
        true_cfg_scale: float = 5.5,
        generator: list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> Any:
        self.asked.append({"prompt": prompt, "steps": num_inference_steps, "guidance": true_cfg_scale})
        assert output_type == "pt"
        with self.progress_bar(total=num_inference_steps) as bar:
            for _ in range(num_inference_steps):
                bar.update()
        return ImagePipelineOutput(images=torch.cat([torch.rand(1, 3, 4, 4, generator=g) for g in generator]))


def test_text_pipelines_get_prompts_and_guidance_under_their_own_name() -> None:
    pipeline = TextPipeline(transformer=tiny_dit(), scheduler=DDIMScheduler())
    denoiser = load_denoiser(pipeline)
    assert (denoiser.default_steps, denoiser.default_guidance) == (28, 5.5)
    images = denoiser.sample(range(20), steps=2, guidance=3.0, batch_size=12)
    assert images.shape == (20, 3, 4, 4)
    prompts = denoiser.conditions(20)
    assert [asked["prompt"] for asked in pipeline.asked] == [prompts[:12], prompts[12:]]
    assert all((asked["steps"], asked["guidance"]) == (2, 3.0) for asked in pipeline.asked)
    assert denoiser.captions(prompts) == prompts
    assert len(set(prompts)) >= 10


@pytest.mark.parametrize("make", [tiny_pipeline, lambda: TextPipeline(tiny_dit(), DDIMScheduler())])
def test_progress_counts_every_step_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, Any] = {}

    def track(iterable: Any, description: str, total: int) -> Iterator[int]:
        counts.update(description=description, total=total, done=0)
        for item in iterable:
            yield item
            counts["done"] += 1

    monkeypatch.setattr(stepbar, "track", track)
    pipeline = make()
    load_denoiser(pipeline).sample(range(5), steps=4, batch_size=2, description="images")
    assert counts == {"description": "images", "total": 12, "done": 12}
    assert "progress_bar" not in vars(pipeline)


def test_an_aborted_sampling_gives_the_bar_back() -> None:
    pipeline = tiny_pipeline()
    denoiser = load_denoiser(pipeline)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    pipeline.transformer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        denoiser.sample([1], steps=3)
    assert "progress_bar" not in vars(pipeline)


class Exported:
    """An exported model: a config and a call, no torch module."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.config = model.config
        self._model = model

    def __call__(self, return_dict: bool = True, **inputs: torch.Tensor) -> tuple[torch.Tensor]:
        return (self._model(**inputs).sample,)


def test_a_transformer_that_is_no_torch_module() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    other = denoiser.with_transformer(Exported(denoiser.transformer))
    assert torch.equal(other.sample([1, 2], steps=2), denoiser.sample([1, 2], steps=2))
    assert other.conditions(6) == denoiser.conditions(6)
    assert other.fingerprint == denoiser.fingerprint
