"""Latents and labels as data: calls at noised images that exist, in place of the model's own trajectories."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ditpress.calibrate.calls import Call
from ditpress.errors import InputError
from ditpress.load.denoiser import Denoiser


@dataclass(frozen=True)
class LabelledLatents:
    """Images as the transformer sees them, without noise, and their classes.

    Attributes:
        latents: float32 [N, C, H, W], scaled as the model wants them: pixels in -1..1, or what the VAE gives
            times its scaling factor.
        labels: int64 [N].
    """

    latents: Tensor
    labels: Tensor


def load_data(path: Path | str, denoiser: Denoiser) -> LabelledLatents:
    """Read an ``.npz`` or ``.safetensors`` with ``latents`` and ``labels`` that fit the model.

    Raises:
        InputError: a model without classes; no such file, or one that cannot be read; tensors of another
            shape or type than the model's, values that are not finite, labels that it has not.
    """
    path = Path(path)
    if denoiser.anatomy.family != "dit":
        raise InputError(
            f"data {path}: latents and labels are for class-conditional models, {denoiser.source.spec} is a "
            f"{denoiser.anatomy.family}; leave data out, it then learns from its own trajectories"
        )
    latents, labels = _read(path)
    config = denoiser.transformer.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    if latents.dim() != 4 or tuple(latents.shape[1:]) != shape or not latents.is_floating_point():
        raise InputError(
            f"data {path}: latents are {latents.dtype} {list(latents.shape)}, expected floating point "
            f"[N, {', '.join(map(str, shape))}] for this model"
        )
    whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if not whole or labels.shape != latents.shape[:1] or not len(labels):
        raise InputError(
            f"data {path}: labels are {labels.dtype} {list(labels.shape)}, expected whole numbers "
            f"[{len(latents)}], one for each latent, and at least one"
        )
    bad = labels[(labels < 0) | (labels >= config.num_embeds_ada_norm)]
    if len(bad):
        raise InputError(
            f"data {path}: label {int(bad[0])}, expected 0 to {config.num_embeds_ada_norm - 1} for this model"
        )
    if not bool(latents.isfinite().all()):
        raise InputError(f"data {path}: latents hold NaN or infinite values; remove those images")
    return LabelledLatents(latents.float(), labels.long())


def noised_calls(
    denoiser: Denoiser,
    data: LabelledLatents,
    *,
    samples: int,
    steps: int,
    guidance: float,
    seed: int,
    batch_size: int,
) -> list[Call]:
    """The calls of :func:`ditpress.calibrate.calls.record_calls`, at noised data (Ho et al. 2020, eq. 4).

    ``samples`` images, in random order and as often as it takes, each with fresh noise at every timestep of
    the sampler. With guidance (above 1) a call is doubled, its second half without classes, as the pipeline
    does it.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [
            torch.randperm(len(data.labels), generator=generator)
            for _ in range(-(-samples // len(data.labels)))
        ]
    )[:samples]
    null_class = denoiser.transformer.config.num_embeds_ada_norm
    schedulers = _at_every_timestep(denoiser.pipeline.scheduler, steps)
    calls = []
    for chosen in order.split(batch_size):
        x, labels = data.latents[chosen], data.labels[chosen]
        for timestep, scheduler in schedulers:
            noised = _noised(scheduler, x, timestep, torch.randn(x.shape, generator=generator))
            classes = labels
            if guidance > 1:
                noised, classes = (
                    torch.cat([noised, noised]),
                    torch.cat([labels, labels.new_full((len(x),), null_class)]),
                )
            kwargs = {
                "hidden_states": noised,
                "timestep": timestep.reshape(1).repeat(len(noised)),
                "class_labels": classes,
            }
            calls.append(Call(float(timestep), kwargs))
    return calls


def noised_like(calls: Sequence[Call], denoiser: Denoiser, data: LabelledLatents, seed: int) -> list[Call]:
    """As many calls as the recorded ones, of as many images at as many timesteps, at noised data."""
    steps = len({call.timestep for call in calls})
    rows = sum(len(call.kwargs["hidden_states"]) for call in calls)
    null_class = denoiser.transformer.config.num_embeds_ada_norm
    doubled = bool((calls[0].kwargs["class_labels"] == null_class).any())
    return noised_calls(
        denoiser,
        data,
        samples=max(1, rows // steps // (1 + doubled)),
        steps=steps,
        guidance=2.0 if doubled else 1.0,
        seed=seed,
        batch_size=max(1, len(calls[0].kwargs["hidden_states"]) // (1 + doubled)),
    )


def _read(path: Path) -> tuple[Tensor, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["labels"])
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            return tensors["latents"], tensors["labels"]
    except KeyError as error:
        raise InputError(f"data {path}: has no {error}; expected the arrays latents and labels") from error
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"data {path}: cannot be read ({first}); give an .npz or .safetensors") from error
    raise InputError(f"data {path}: expected an .npz or .safetensors file with latents and labels")


def _at_every_timestep(scheduler: Any, steps: int) -> list[tuple[Tensor, Any]]:
    """The timesteps of sampling, each with a scheduler of its own: some count the calls that they get."""
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(steps)
    return [(timestep, copy.deepcopy(fresh)) for timestep in fresh.timesteps.cpu()]


def _noised(scheduler: Any, x: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
    times = timestep.reshape(1).repeat(len(x))
    if hasattr(scheduler, "scale_noise"):  # flow matching
        mixed = scheduler.scale_noise(x, times, noise)
    else:
        mixed = scheduler.add_noise(x, noise, times)
    scaled: Tensor = (
        scheduler.scale_model_input(mixed, timestep) if hasattr(scheduler, "scale_model_input") else mixed
    )
    return scaled
