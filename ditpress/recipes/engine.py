"""Runs a recipe: load, record calls, stages, model folder, ONNX, validation, report.

Every step is a checkpoint keyed by the content it depends on, so a run that was killed at any moment goes on
from its last finished step, and ends in the same bits as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ditpress.calibrate.calls import Call, load_calls
from ditpress.compress.stage import RunContext, complete
from ditpress.errors import DitpressError, InputError, StageError
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.recipes import bench, steps
from ditpress.recipes.checkpoint import Checkpoints, Manifest, content_key
from ditpress.recipes.conclude import conclude
from ditpress.recipes.estimate import disk_bytes
from ditpress.recipes.recipe import Recipe
from ditpress.recipes.result import Result
from ditpress.recipes.run import RunFolder, open_run
from ditpress.recipes.skeleton import planned, skeleton

log = logging.getLogger(__name__)


def load_for(
    model: str | DiffusionPipeline,
    recipe: Recipe,
    *,
    scheduler: str | Path | None = None,
    device: str = "cpu",
) -> tuple[Denoiser, Recipe]:
    """The denoiser, and the recipe with all written in that it takes from the model and from its own stages.

    A pipeline object stays as it is: its transformer is copied before the stages change it.

    Raises:
        InputError: no such model, or one that a stage of the recipe cannot take.
    """
    denoiser = _load(model, recipe, scheduler, device)
    recipe = recipe.model_copy(update={"stages": complete(recipe.stages)})
    planned(denoiser, recipe.stages)
    guidance = denoiser.default_guidance
    calibration, validation = recipe.calibration, recipe.validation
    if calibration.guidance is None:
        calibration = calibration.model_copy(update={"guidance": guidance})
    if validation.guidance is None:
        validation = validation.model_copy(update={"guidance": guidance})
    if validation.steps is None:
        validation = validation.model_copy(update={"steps": denoiser.default_steps})
    return denoiser, recipe.model_copy(update={"calibration": calibration, "validation": validation})


def _load(
    model: str | DiffusionPipeline, recipe: Recipe, scheduler: str | Path | None, device: str
) -> Denoiser:
    if isinstance(model, DiffusionPipeline):
        original = model
        model = copy.copy(original)
        model.transformer = copy.deepcopy(original.transformer)
    return load_denoiser(model, scheduler=scheduler, device=device, seed=recipe.seed)


def run_recipe(
    model: str | DiffusionPipeline,
    recipe: Recipe,
    out: str | Path,
    *,
    fresh: bool = False,
    scheduler: str | Path | None = None,
    device: str = "cpu",
) -> Result:
    """Run ``recipe`` on ``model`` and write the run folder ``out``; resumes an earlier run of the same.

    Args:
        model: see :func:`ditpress.load.source.resolve`, or a diffusers pipeline, which is left as it is.
        recipe: what to do.
        out: the run folder.
        fresh: start anew; also replaces a run of another model or recipe.
        scheduler: a folder whose scheduler replaces the model's own.
        device: where torch computes.

    Raises:
        InputError: bad model, recipe or ``out``, or a full disk; nothing is half-written.
        StageError: a stage failed.
    """
    denoiser, recipe = load_for(model, recipe, scheduler=scheduler, device=device)
    identity = identity_of(denoiser, recipe, scheduler)
    path = Path(out)
    with open_run(path, identity, fresh=fresh, needed=disk_bytes(denoiser, recipe)) as run:
        run.write("recipe.yaml", recipe.to_yaml().encode())
        return _Run(denoiser, recipe, run, partial(_load, model, recipe, scheduler, device)).go()


def identity_of(denoiser: Denoiser, recipe: Recipe, scheduler: str | Path | None = None) -> dict[str, Any]:
    """Whose run a folder is: see :func:`~ditpress.recipes.run.open_run`."""
    return {
        "key": content_key(denoiser.fingerprint, recipe.compression()),
        "model": denoiser.source.spec,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "fingerprint": denoiser.fingerprint,
        "scheduler": None if scheduler is None else str(scheduler),
    }


def stage_keys(denoiser: Denoiser, recipe: Recipe) -> list[str]:
    """The keys of the recorded calls and of every stage's checkpoint, each over all that came before it."""
    keys = [
        content_key(denoiser.fingerprint, recipe.seed, recipe.calibration.model_dump(mode="json")),
    ]
    for stage in recipe.stages:
        keys.append(content_key(keys[-1], stage.model_dump(mode="json")))
    return keys


class _Run:
    """One run under way; ``load`` gives the model as it was, again."""

    def __init__(
        self, denoiser: Denoiser, recipe: Recipe, run: RunFolder, load: Callable[[], Denoiser]
    ) -> None:
        self.denoiser = denoiser
        self.recipe = recipe
        self.run = run
        self.load = load
        self.done = Checkpoints(run)
        self.last = len(recipe.stages)

    def go(self) -> Result:
        recipe, validation = self.recipe, self.recipe.validation
        before = skeleton(self.denoiser.transformer)
        keys = stage_keys(self.denoiser, recipe)
        base = keys[0]
        recorded = self.step(0, "calibration", base, lambda part: steps.record(self.denoiser, recipe, part))
        calls = load_calls(self.folder(0, recorded))
        drawing = validation.model_dump(mode="json", include={"samples", "steps", "guidance"})
        original = self.step(
            0,
            "original",
            content_key(base, "original", drawing),
            lambda part: steps.draw_original(self.denoiser, validation, recipe.seed, calls, part),
        )
        if validation.speed:
            float_onnx = self.step(
                0,
                bench.ORIGINAL,
                content_key(base, bench.ORIGINAL),
                lambda part: bench.export_original(self.denoiser, calls, part),
            )
        key, errors = self.compress(keys, calls)
        self.step(self.last + 1, "model", content_key(key, "model"), self.save_model, publish="model")
        exported = content_key(key, "onnx", recipe.export.model_dump(mode="json"))
        onnx = self.step(
            self.last + 2, "onnx", exported, lambda part: self.export(calls, part), publish="onnx"
        )
        judged = self.step(
            self.last + 3,
            "validation",
            content_key(exported, "validation", drawing),
            lambda part: steps.draw_compressed(
                self.denoiser,
                validation,
                recipe.seed,
                calls,
                self.run.path / "onnx" / "transformer",
                self.folder(0, original),
                part,
            ),
        )
        speed = None
        if validation.speed:
            speed = self.step(
                self.last + 4,
                "speed",
                content_key(exported, "speed"),
                lambda part: bench.measure(
                    self.folder(0, float_onnx), self.run.path / "onnx" / "transformer", calls
                ).model_dump(),
            )
        return conclude(
            run=self.run,
            denoiser=self.denoiser,
            recipe=recipe,
            before=before,
            original=self.folder(0, original),
            compressed=self.folder(self.last + 3, judged),
            errors=errors,
            parity=onnx.facts,
            sqnr=steps.sqnr_of(judged.facts),
            speed=None if speed is None else speed.facts,
            records=[record for _, record in sorted(self.done.records.items())],
        )

    def compress(self, keys: list[str], calls: list[Call]) -> tuple[str, dict[str, Any]]:
        """Apply the stages that are not done yet; the key of the last one, and the error of each layer."""
        stages = self.recipe.stages
        finished = next(
            (i for i in range(len(stages), 0, -1) if self.done.find(i, stages[i - 1].kind, keys[i])), 0
        )
        for index in range(1, finished + 1):
            self.done.note(index, stages[index - 1].kind, keys[index])
            self.done.clear_work(index, stages[index - 1].kind, keys[index])
        if finished:
            self.reload(finished, keys[finished])
        for index in range(finished + 1, len(stages) + 1):
            stage = stages[index - 1]
            log.info("stage %d/%d %s", index, len(stages), stage.kind)
            with _named(f"stage {index}/{len(stages)} {stage.kind}"):
                context = RunContext(
                    calls,
                    self.original,
                    [self.done.records[i, stages[i - 1].kind].facts for i in range(1, index)],
                    self.done.work(index, stage.kind, keys[index]),
                )
                fill = partial(steps.apply_stage, stage, self.denoiser, calls, context=context)
                self.done.do(index, stage.kind, keys[index], fill)
            self.done.clear_work(index, stage.kind, keys[index])
            self.reload(index, keys[index])
        errors: dict[str, Any] = {}
        for record in self.done.records.values():
            errors |= record.facts.get("layer_errors", {})
        return keys[-1], errors

    def original(self) -> Denoiser:
        """The model as it was before all stages, in the pipeline of this run."""
        loaded = self.load()
        if loaded.fingerprint != self.denoiser.fingerprint:
            raise InputError(
                f"{self.denoiser.source.spec} was changed while the run was under way; run again with --fresh"
            )
        return self.denoiser.with_transformer(loaded.transformer)

    def reload(self, index: int, key: str) -> None:
        kind = self.recipe.stages[index - 1].kind
        self.denoiser = steps.reload(self.denoiser, self.done.folder(index, kind, key))

    def save_model(self, part: Path) -> None:
        steps.save_model(self.denoiser, part)

    def export(self, calls: list[Call], part: Path) -> dict[str, Any]:
        return steps.export(self.denoiser, self.recipe.export, calls, part)

    def step(
        self,
        index: int,
        name: str,
        key: str,
        fill: Callable[[Path], dict[str, Any] | None],
        publish: str | None = None,
    ) -> Manifest:
        """The manifest of a step, done now unless it is done already."""
        found = self.done.find(index, name, key)
        if found is not None:
            return found
        log.info("step %s", name)
        with _named(f"step {name}"):
            return self.done.do(index, name, key, fill, publish)

    def folder(self, index: int, manifest: Manifest) -> Path:
        return self.done.folder(index, manifest.name, manifest.key)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors that nobody foresaw become a StageError that names the step."""
    try:
        yield
    except DitpressError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()
        raise StageError(
            f"{what} failed: {type(error).__name__}: {first[0] if first else 'no message'}"
        ) from error
