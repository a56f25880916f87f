"""A Denoiser: a pipeline and its transformer as the rest of ditpress sees them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.fused import unfuse
from ditpress.load.anatomy import Anatomy, anatomy_of, tie_shared
from ditpress.load.assemble import load_pipeline, load_scheduler
from ditpress.load.conditions import PROMPTS, cycle
from ditpress.load.fingerprint import fingerprint_of
from ditpress.load.pipelines import ClassConditionalPipeline, build_in_guidance, built_in_guidance
from ditpress.load.source import Source, resolve
from ditpress.load.stepbar import one_bar
from ditpress.load.weights import check_finite

DEFAULT_STEPS = 50
DEFAULT_GUIDANCE = 4.0
# Diffusers' names for the strength of guidance, the real classifier-free one first.
_GUIDANCE_NAMES = ("guidance_scale", "cfg_scale", "true_cfg_scale")


class Denoiser:
    """A diffusion pipeline with a DiT in it.

    Attributes:
        pipeline: the diffusers pipeline; its transformer is float32 and in eval mode.
        source: where it came from.
        anatomy: what is where in its transformer.
        fingerprint: sha256 over config and weights as they were loaded, also after a stage changed them.
        default_steps, default_guidance: used by ``sample`` where the caller does not say.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, source: Source, anatomy: Anatomy, fingerprint: str
    ) -> None:
        self.pipeline = pipeline
        self.source = source
        self.anatomy = anatomy
        self.fingerprint = fingerprint
        parameters = inspect.signature(type(pipeline).__call__).parameters
        self._is_text = "prompt" in parameters
        self._guidance_name = next((name for name in _GUIDANCE_NAMES if name in parameters), None)
        self.default_steps: int = _default(
            pipeline, parameters, "default_steps", "num_inference_steps", DEFAULT_STEPS
        )
        self.default_guidance: float = _default(
            pipeline, parameters, "default_guidance", self._guidance_name, DEFAULT_GUIDANCE
        )

    @property
    def transformer(self) -> Any:
        """The diffusers model, or what ``with_transformer`` put in its place."""
        return self.pipeline.transformer

    def conditions(self, count: int) -> list[int] | list[str]:
        """``count`` class labels 0 .. C-1 in turn, or prompts in turn. Entry i belongs to image i."""
        if self._is_text:
            return cycle(list(PROMPTS), count)
        return cycle(list(range(self.transformer.config.num_embeds_ada_norm)), count)

    def captions(self, conditions: Sequence[int] | Sequence[str]) -> list[str]:
        """A text for each condition, as CLIP wants it: the prompt, or the class in the pipeline's caption."""
        names = getattr(self.pipeline.config, "id2label", None) or {}
        template = getattr(self.pipeline.config, "caption", "a photo of a {label}")
        return [
            condition
            if isinstance(condition, str)
            # ImageNet names several words for one class: the first is the common one.
            else template.format(label=names.get(str(condition), f"class {condition}").split(",")[0])
            for condition in conditions
        ]

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        batch_size: int = 64,
        description: str = "sampling",
        first: int = 0,
    ) -> Tensor:
        """Draw one image per seed.

        Image i starts from the noise of its own CPU ``torch.Generator`` with seed ``seeds[i]``, and is drawn
        for ``conditions(first + len(seeds))[first + i]``: neither depends on the batch size or the device.
        ``first``: how many images before these have used up conditions.

        Returns:
            float32 [n, C, H, W] in 0..1, on the CPU. A latent pipeline without a VAE gives its latents as
            ``LatentDiTPipeline`` describes.
        """
        steps = self.default_steps if steps is None else steps
        guidance = self.default_guidance if guidance is None else guidance
        if not seeds:
            raise InputError("no seeds given: expected at least one image to sample")
        if steps < 1 or batch_size < 1:
            raise InputError(f"steps {steps} and batch size {batch_size}: expected at least 1 of each")
        wanted = self.conditions(first + len(seeds))[first:]
        starts = range(0, len(seeds), batch_size)
        images = []
        with one_bar(self.pipeline, description, steps * len(starts)):
            for start in starts:
                chunk = slice(start, start + batch_size)
                images.append(self._draw(wanted[chunk], seeds[chunk], steps, guidance))
        return torch.cat(images)

    def _draw(self, conditions: Sequence[Any], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
        arguments: dict[str, Any] = {
            "prompt" if self._is_text else "class_labels": list(conditions),
            "num_inference_steps": steps,
            "generator": [torch.Generator().manual_seed(int(seed)) for seed in seeds],
            "output_type": "pt",
        }
        if self._guidance_name is not None:
            arguments[self._guidance_name] = guidance
        images = self.pipeline(**arguments).images
        return images.float().cpu().clamp(0, 1)

    @property
    def built_in_guidance(self) -> float | None:
        """The scale of the guidance that the transformer gives by itself, in one pass, or None."""
        return built_in_guidance(self.pipeline)

    def with_built_in_guidance(self, scale: float) -> Denoiser:
        """The same around a transformer that has learned to give guided predictions.

        Raises:
            InputError: no class-conditional pipeline.
        """
        return Denoiser(build_in_guidance(self.pipeline, scale), self.source, self.anatomy, self.fingerprint)

    def with_transformer(self, transformer: Any) -> Denoiser:
        """The same pipeline, scheduler and source around another transformer (also an ONNX one)."""
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = copy.deepcopy(self.pipeline.scheduler)
        pipeline.transformer = transformer
        return Denoiser(pipeline, self.source, self.anatomy, self.fingerprint)


def load_denoiser(
    model: str | Path | DiffusionPipeline,
    *,
    scheduler: str | Path | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Denoiser:
    """Load MODEL in float32, with embedders that all blocks share tied into one.

    Args:
        model: what ``resolve`` accepts, or a pipeline object, which is then worked on in place.
        scheduler: a folder with scheduler_config.json (or a pipeline folder) that overrides the model's own.
        device: where to put it.
        seed: of the weights of a ``random:`` model.

    Raises:
        InputError: see ``resolve`` and ``load_transformer``.
    """
    if isinstance(model, str | Path):
        source = resolve(str(model))
        pipeline = load_pipeline(source, seed)
    else:
        source = Source("pipeline", type(model).__name__, None)
        pipeline = model
        if not isinstance(getattr(pipeline, "transformer", None), nn.Module):
            raise InputError(
                f"{type(pipeline).__name__}: has no transformer; expected a pipeline with a DiT in it"
            )
    transformer = pipeline.transformer
    anatomy = anatomy_of(transformer)
    unfuse(transformer)  # a pipeline of ``ditpress.load``: stages watch modules that fused blocks pass by
    if isinstance(model, DiffusionPipeline):
        if any(p.dtype != torch.float32 for p in transformer.parameters()):
            pipeline.to(torch.float32)
        transformer.eval().requires_grad_(False)
        check_finite(transformer, source.spec)
    if scheduler is not None:
        pipeline.scheduler = load_scheduler(Path(scheduler))
    tie_shared(transformer, anatomy.shared(transformer))
    pipeline.to(device)
    return Denoiser(pipeline, source, anatomy, fingerprint_of(transformer, pipeline.scheduler))


def _default(
    pipeline: DiffusionPipeline, parameters: Any, own: str, argument: str | None, otherwise: Any
) -> Any:
    """A setting of our pipelines, else the default value of the pipeline's own argument."""
    if isinstance(pipeline, ClassConditionalPipeline):
        return getattr(pipeline.config, own)
    default = parameters[argument].default if argument in parameters else None
    return default if isinstance(default, int | float) else otherwise
