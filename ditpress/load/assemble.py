"""From a source to a pipeline in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DiffusionPipeline, DiTPipeline
from torch import nn

from ditpress.errors import InputError
from ditpress.load.anatomy import anatomy_of
from ditpress.load.pipelines import LatentDiTPipeline, PixelDiTPipeline
from ditpress.load.random_dit import architecture, random_dit
from ditpress.load.source import Source, download
from ditpress.load.weights import check_finite, first_line, load_transformer, quiet_diffusers, read_json
from ditpress.load.zoo import zoo_entry


def load_scheduler(folder: Path) -> Any:
    """The scheduler in ``folder`` or its ``scheduler`` folder. Raises InputError when there is none."""
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        folder = folder / "scheduler"
    name = read_json(folder / "scheduler_config.json").get("_class_name")
    cls: Any = getattr(diffusers, str(name), None)
    known = isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)
    if not known:
        raise InputError(
            f"{folder}/scheduler_config.json: {name!r} is no scheduler of diffusers; check _class_name"
        )
    return cls.from_pretrained(folder, local_files_only=True)


def load_pipeline(source: Source, seed: int) -> DiffusionPipeline:
    """The pipeline that ``source`` names, in float32 on the CPU; ``seed`` is for the weights of a random one.

    Raises InputError when it cannot be loaded.
    """
    if source.kind == "random":
        return _bare_pipeline(random_dit(architecture(source.spec.removeprefix("random:")), seed))
    if source.kind == "hub":
        source = download(source)
    assert source.path is not None
    folder = source.path
    if not (folder / "model_index.json").is_file():
        return _bare_pipeline(load_transformer(folder))
    pipeline = _load_folder(folder)
    if source.kind == "zoo":
        pipeline.register_to_config(**_json_keys(zoo_entry(source.spec.removeprefix("zoo:")).settings))
    return pipeline


def _load_folder(folder: Path) -> DiffusionPipeline:
    """A diffusers pipeline folder; the transformer is loaded by our own, stricter reader."""
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
        with quiet_diffusers():
            pipeline = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, **components)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise InputError(f"{folder}: cannot be loaded as {cls.__name__}: {first_line(error)}") from error
    for name, component in pipeline.components.items():
        if name != "transformer" and isinstance(component, nn.Module):
            check_finite(component, f"{folder}/{name}")
            component.float().eval().requires_grad_(False)
    return pipeline


def _pipeline_class(folder: Path, index: dict[str, Any], transformer: Any) -> Any:
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


def _bare_pipeline(transformer: Any) -> DiffusionPipeline:
    """A pipeline for a transformer that came alone: DDIM on the linear schedule of Ho et al. 2020."""
    if anatomy_of(transformer).family != "dit":
        raise InputError(
            f"{type(transformer).__name__}: came without its pipeline and needs its text encoders; "
            "give the folder that holds model_index.json"
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
