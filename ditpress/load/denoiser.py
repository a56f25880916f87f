"""A pipeline and its transformer as the rest of ditpress sees them."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTPipeline
from diffusers.utils import logging
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.load.anatomy import Anatomy, anatomy_of, tie_shared
from ditpress.load.conditions import PROMPTS, cycle
from ditpress.load.fingerprint import fingerprint_of
from ditpress.load.pipelines import ClassConditionalPipeline, LatentDiTPipeline, PixelDiTPipeline
from ditpress.load.random_dit import architecture, random_dit
from ditpress.load.source import Source, download, resolve
from ditpress.load.weights import check_finite, first_line, load_transformer, read_json
from ditpress.load.zoo import zoo_entry
from ditpress.progress import track

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
    def transformer(self) -> nn.Module:
        return self.pipeline.transformer

    def conditions(self, count: int) -> list[int] | list[str]:
        """``count`` class labels 0 .. C-1 in turn, or prompts in turn. Entry i belongs to image i."""
        if self._is_text:
            return cycle(list(PROMPTS), count)
        return cycle(list(range(self.transformer.config.num_embeds_ada_norm)), count)

    def captions(self, conditions: Sequence[int] | Sequence[str]) -> list[str]:
        """A text for each condition, as CLIP wants it: the prompt, or the class name in the pipeline's caption."""
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
    ) -> Tensor:
        """Draw one image per seed.

        Image i starts from the noise of its own ``torch.Generator`` on the CPU seeded with ``seeds[i]``, and is
        drawn for ``conditions(len(seeds))[i]``: neither depends on the batch size or the device.

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
        wanted = self.conditions(len(seeds))
        starts = range(0, len(seeds), batch_size)
        images = []
        with _progress(self.pipeline, description, steps * len(starts)):
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

    def with_transformer(self, transformer: Any) -> Denoiser:
        """The same pipeline, scheduler and source around another transformer (also an ONNX one)."""
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = copy.deepcopy(self.pipeline.scheduler)
        pipeline.transformer = transformer
        return Denoiser(pipeline, self.source, self.anatomy, self.fingerprint)


def load_denoiser(
    model: str | DiffusionPipeline,
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
    if isinstance(model, str):
        source = resolve(model)
        pipeline = _load_pipeline(source, seed)
    else:
        source = Source("pipeline", type(model).__name__, None)
        pipeline = model
        if not isinstance(getattr(pipeline, "transformer", None), nn.Module):
            raise InputError(
                f"{type(pipeline).__name__}: has no transformer; expected a pipeline with a DiT in it"
            )
    transformer = pipeline.transformer
    anatomy = anatomy_of(transformer)
    if not isinstance(model, str):
        if any(p.dtype != torch.float32 for p in transformer.parameters()):
            pipeline.to(torch.float32)
        transformer.eval().requires_grad_(False)
        check_finite(transformer, source.spec)
    if scheduler is not None:
        pipeline.scheduler = load_scheduler(Path(scheduler))
    tie_shared(transformer, anatomy.shared(transformer))
    pipeline.to(device)
    return Denoiser(pipeline, source, anatomy, fingerprint_of(transformer, pipeline.scheduler))


def load_scheduler(folder: Path) -> Any:
    """The scheduler in ``folder`` or its ``scheduler`` folder. Raises InputError when there is none."""
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        folder = folder / "scheduler"
    name = read_json(folder / "scheduler_config.json").get("_class_name")
    cls = getattr(diffusers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise InputError(
            f"{folder}/scheduler_config.json: {name!r} is no scheduler of diffusers; check _class_name"
        )
    return cls.from_pretrained(folder, local_files_only=True)


def _load_pipeline(source: Source, seed: int) -> DiffusionPipeline:
    if source.kind == "random":
        return _bare_pipeline(random_dit(architecture(source.spec.removeprefix("random:")), seed))
    if source.kind == "hub":
        source = download(source)
    assert source.path is not None
    folder = source.path
    if not (folder / "model_index.json").is_file():
        return _bare_pipeline(load_transformer(folder))
    pipeline = load_pipeline_folder(folder)
    if source.kind == "zoo":
        pipeline.register_to_config(**_json_keys(zoo_entry(source.spec.removeprefix("zoo:")).settings))
    return pipeline


def load_pipeline_folder(folder: Path) -> DiffusionPipeline:
    """A diffusers pipeline folder, float32. Raises InputError for one without a DiT or that does not load."""
    index = read_json(folder / "model_index.json")
    if "transformer" not in index:
        raise InputError(
            f"{folder}: {index.get('_class_name')} has no transformer; expected a pipeline with a DiT"
        )
    transformer = load_transformer(folder / "transformer")
    cls = _pipeline_class(folder, index, transformer)
    components: dict[str, Any] = {"transformer": transformer}
    if "vae" in index and index["vae"] == [None, None]:
        components["vae"] = None
    try:
        with _no_loading_bar():
            pipeline = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, **components)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise InputError(f"{folder}: cannot be loaded as {cls.__name__}: {first_line(error)}") from error
    for name, component in pipeline.components.items():
        if name != "transformer" and isinstance(component, nn.Module):
            check_finite(component, f"{folder}/{name}")
            component.float().eval().requires_grad_(False)
    return pipeline


def _pipeline_class(folder: Path, index: dict[str, Any], transformer: nn.Module) -> Any:
    name = str(index.get("_class_name"))
    ours = {cls.__name__: cls for cls in (PixelDiTPipeline, LatentDiTPipeline)}
    cls = ours.get(name) or getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise InputError(
            f"{folder}/model_index.json: {name!r} is no pipeline of diffusers; check _class_name"
        )
    if cls is DiTPipeline:
        # Diffusers' class needs a VAE and takes class 1000 for the empty one, whatever the class table holds.
        has_vae = index.get("vae", [None, None]) != [None, None]
        if not has_vae or transformer.config.num_embeds_ada_norm != 1000:
            return LatentDiTPipeline
    return cls


def _bare_pipeline(transformer: nn.Module) -> DiffusionPipeline:
    """A pipeline around a transformer that came alone: the linear schedule of Ho et al. 2020, sampled with DDIM."""
    if anatomy_of(transformer).family != "dit":
        raise InputError(
            f"{type(transformer).__name__}: came without its pipeline, expected the folder with model_index.json, "
            "since it needs its text encoders"
        )
    pixels = transformer.config.in_channels in (1, 3)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="epsilon",
        clip_sample=pixels,
    )
    return (PixelDiTPipeline if pixels else LatentDiTPipeline)(transformer=transformer, scheduler=scheduler)


def _json_keys(settings: Any) -> dict[str, Any]:
    return {
        key: {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
        for key, value in settings.items()
    }


def _default(
    pipeline: DiffusionPipeline, parameters: Any, own: str, argument: str | None, otherwise: Any
) -> Any:
    """A setting of our pipelines, else the default value of the pipeline's own argument."""
    if isinstance(pipeline, ClassConditionalPipeline):
        return getattr(pipeline.config, own)
    default = parameters[argument].default if argument in parameters else None
    return default if isinstance(default, int | float) else otherwise


@contextlib.contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Diffusers shows a bar even for a load of milliseconds."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _progress(pipeline: DiffusionPipeline, description: str, total: int) -> Iterator[None]:
    """One bar over all denoising steps of all batches, in the place of the pipeline's own."""
    bar = track(range(total), description, total)
    pipeline.progress_bar = _StepBar(bar)
    try:
        yield
    finally:
        del pipeline.progress_bar  # the method of the class is visible again
        bar.close()


class _StepBar:
    """Stands in for ``DiffusionPipeline.progress_bar``, in both ways in which pipelines use it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, iterable: Iterable | None = None, total: int | None = None) -> Any:
        return self if iterable is None else self._over(iterable)

    def _over(self, iterable: Iterable) -> Iterator:
        for item in iterable:
            yield item
            self.update()

    def __enter__(self) -> _StepBar:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def update(self, count: int = 1) -> None:
        for _ in range(count):
            next(self._bar, None)
