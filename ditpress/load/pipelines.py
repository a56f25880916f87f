"""Diffusers pipelines for class-conditional DiTs: on pixels, and on latents with or without a VAE."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DiTPipeline,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ditpress.errors import InputError

Generators = torch.Generator | list[torch.Generator] | None


class ClassConditionalPipeline(DiffusionPipeline):
    """Sampling loop of a class-conditional DiT with classifier-free guidance (Ho & Salimans 2022).

    The null class is ``transformer.config.num_embeds_ada_norm``, the row that diffusers' label embedder adds
    behind the class table. The transformer is called with keyword arguments only: ``hidden_states``
    [B, C, H, W], ``timestep`` [B], ``class_labels`` [B]; with guidance B is doubled, conditional half first.

    ``id2label`` names the classes, ``caption`` turns a name into a text ("a photo of a {label}");
    ``default_steps`` and ``default_guidance`` apply where a call does not say. With ``built_in_guidance`` the
    transformer gives guided predictions by itself, at this scale: one pass a step, without doubling.
    """

    model_cpu_offload_seq = "transformer->vae"

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw one image per entry of ``class_labels``.

        Args:
            class_labels: class indices, 0 .. number of classes (the last one is the null class).
            guidance_scale: no doubling and no guidance at 1 or below; of a model with built-in guidance its
                own scale, or None.
            num_inference_steps: denoising steps.
            generator: one for all images, or one per image.
            output_type: "pil", "np" [n, H, W, C], "pt" [n, C, H, W], both in 0..1, or "latent": what the
                sampler ends with, unscaled.
            return_dict: False gives ``(images,)``.
        """
        guidance_scale = self.config.default_guidance if guidance_scale is None else guidance_scale
        num_inference_steps = (
            self.config.default_steps if num_inference_steps is None else num_inference_steps
        )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type {output_type!r}: expected 'pil', 'np', 'pt' or 'latent'")
        config = self.transformer.config
        device = self._execution_device
        labels = self._labels(class_labels, device)
        built_in = self.config.built_in_guidance
        if built_in is not None and guidance_scale != built_in:
            raise InputError(
                f"guidance_scale {guidance_scale:g}: this model has guidance of scale {built_in:g} built in; "
                "leave guidance_scale out, or give that one"
            )
        guided = guidance_scale > 1 and built_in is None
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, config.num_embeds_ada_norm)])

        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = randn_tensor(shape, generator=generator, device=device, dtype=self._dtype())
        x = x * self.scheduler.init_noise_sigma
        takes = inspect.signature(self.scheduler.step).parameters
        extra: dict[str, Any] = {"generator": generator} if "generator" in takes else {}
        if "use_clipped_model_output" in takes:
            # Where the scheduler clips x0, the noise must be derived from the clipped x0 as well: guidance
            # pushes x0 out of range, and the two would no longer add up to x (Nichol et al., GLIDE, 2021).
            extra["use_clipped_model_output"] = True
        for t in self.progress_bar(self.scheduler.timesteps):
            model_input = self.scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t)
            output = self.transformer(
                hidden_states=model_input,
                timestep=t.reshape(1).to(device).repeat(len(model_input)),
                class_labels=labels,
                return_dict=False,
            )[0]
            # A learned variance comes as a second half of the channels; these samplers do not use it.
            output = output[:, : config.in_channels]
            if guided:
                conditional, unconditional = output.chunk(2)
                output = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(output, t, x, **extra).prev_sample

        images = x if output_type == "latent" else self._decode(x)
        if output_type in ("np", "pil"):
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decode(self, x: Tensor) -> Tensor:
        """Map what the sampler ends with to images [n, C, H, W] in 0..1."""
        raise NotImplementedError

    def _dtype(self) -> torch.dtype:
        return getattr(self.transformer, "dtype", torch.float32)

    def _labels(self, class_labels: Sequence[int], device: torch.device) -> Tensor:
        classes = self.transformer.config.num_embeds_ada_norm
        bad = [label for label in class_labels if not 0 <= int(label) <= classes]
        if bad:
            raise InputError(f"class label {bad[0]}: expected 0 to {classes - 1}, or {classes} for no class")
        return torch.tensor([int(label) for label in class_labels], device=device)

    def _configure(
        self,
        id2label: dict | None,
        caption: str,
        default_steps: int,
        default_guidance: float,
        built_in_guidance: float | None,
    ) -> None:
        # JSON turns the keys into strings: keep one form, so that a saved pipeline equals the loaded one.
        labels = None if id2label is None else {str(index): name for index, name in id2label.items()}
        self.register_to_config(
            id2label=labels,
            caption=caption,
            default_steps=default_steps,
            default_guidance=default_guidance,
            built_in_guidance=built_in_guidance,
        )


class PixelDiTPipeline(ClassConditionalPipeline):
    """A DiT that denoises pixels in -1..1."""

    model_cpu_offload_seq = "transformer"

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,
        caption: str = "a photo of a {label}",
        default_steps: int = 50,
        default_guidance: float = 4.0,
        built_in_guidance: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self._configure(id2label, caption, default_steps, default_guidance, built_in_guidance)

    def _decode(self, x: Tensor) -> Tensor:
        return (x / 2 + 0.5).clamp(0, 1)


class LatentDiTPipeline(ClassConditionalPipeline):
    """A DiT that denoises latents, decoded by ``vae`` where there is one.

    Without a VAE the first three latent channels (the first one, when there are fewer) are shown as they are,
    -3..3 mapped linearly to 0..1: latents are scaled to unit variance, so this holds three standard
    deviations. It is no picture, but two models can be compared on it.
    """

    _optional_components = ["vae"]  # noqa: RUF012  (diffusers' own declaration)

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        id2label: dict | None = None,
        caption: str = "a photo of a {label}",
        default_steps: int = 50,
        default_guidance: float = 4.0,
        built_in_guidance: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self._configure(id2label, caption, default_steps, default_guidance, built_in_guidance)

    def _decode(self, x: Tensor) -> Tensor:
        if self.vae is None:
            channels = 3 if x.shape[1] >= 3 else 1
            return (x[:, :channels] / 6 + 0.5).clamp(0, 1)
        decoded = self.vae.decode((x / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (decoded / 2 + 0.5).clamp(0, 1)


def build_in_guidance(pipeline: DiffusionPipeline, scale: float) -> ClassConditionalPipeline:
    """A pipeline of the same parts that takes its transformer for one with guidance of ``scale`` built in.

    Diffusers' own ``DiTPipeline`` would guide a second time; it becomes a :class:`LatentDiTPipeline`.

    Raises:
        InputError: no class-conditional pipeline.
    """
    if isinstance(pipeline, DiTPipeline):
        labels = getattr(pipeline.config, "id2label", None)
        made = LatentDiTPipeline(pipeline.transformer, pipeline.scheduler, pipeline.vae, labels)
    elif isinstance(pipeline, ClassConditionalPipeline):
        made = copy.copy(pipeline)
    else:
        raise InputError(
            f"{type(pipeline).__name__}: guidance can be built into class-conditional models only, as DiT"
        )
    made.register_to_config(default_guidance=scale, built_in_guidance=scale)
    return made


def built_in_guidance(pipeline: DiffusionPipeline) -> float | None:
    """The scale of the guidance that the transformer of ``pipeline`` gives by itself, or None."""
    return pipeline.config.built_in_guidance if isinstance(pipeline, ClassConditionalPipeline) else None


def register_pipelines() -> None:
    """Let ``DiffusionPipeline.from_pretrained`` find our classes: it looks them up in diffusers by name."""
    for pipeline in (PixelDiTPipeline, LatentDiTPipeline):
        setattr(diffusers, pipeline.__name__, pipeline)
