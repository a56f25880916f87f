"""Runs a recipe: load, record calls, stages, model folder, ONNX, validation, report.

Every step is a checkpoint keyed by the content it depends on, so a run that was killed at any moment goes on
from its last finished step, and ends in the same bits as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ditpress.calibrate.calls import Call, load_calls
from ditpress.compress.stage import RunContext
from ditpress.errors import DitpressError, StageError
from ditpress.load.denoiser import Denoiser
from ditpress.processes import ALONE, Processes, join
from ditpress.recipes import bench, steps
from ditpress.recipes.checkpoint import Checkpoints, Manifest, content_key
from ditpress.recipes.conclude import conclude
from ditpress.recipes.estimate import disk_bytes
from ditpress.recipes.follow import Task, absolute, follow
from ditpress.recipes.loading import load_for, load_model, original_of
from ditpress.recipes.recipe import Recipe
from ditpress.recipes.result import Result
from ditpress.recipes.run import RunFolder, open_run
from ditpress.recipes.skeleton import skeleton

log = logging.getLogger(__name__)


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

    Under torchrun the processes share the stages that train; the first one does all the rest.

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
    processes = join()
    denoiser, recipe = load_for(model, recipe, scheduler=scheduler, device=device)
    load = partial(load_model, model, recipe, scheduler, device)
    if not processes.first:
        follow(denoiser, recipe, partial(original_of, denoiser, load), processes)
        return Result(Path(out))
    identity = identity_of(denoiser, recipe, scheduler)
    path = Path(out)
    with open_run(path, identity, fresh=fresh, needed=disk_bytes(denoiser, recipe)) as run:
        run.write("recipe.yaml", recipe.to_yaml().encode())
        result = _Run(denoiser, recipe, run, load, processes).go()
    processes.shared()  # the others are done too
    return result


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
        self,
        denoiser: Denoiser,
        recipe: Recipe,
        run: RunFolder,
        load: Callable[[], Denoiser],
        processes: Processes = ALONE,
    ) -> None:
        self.denoiser = denoiser
        self.recipe = recipe
        self.run = run
        self.load = load
        self.processes = processes
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
        key, errors = self.compress(keys, calls, self.folder(0, recorded))
        expected = steps.outputs_of(self.folder(0, original))
        if (scale := self.denoiser.built_in_guidance) is not None:
            expected = steps.guided_outputs(self.denoiser, expected, scale)
            calls = steps.conditional_calls(self.denoiser, calls)
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
                expected,
                self.run.path / "onnx" / "transformer",
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

    def compress(self, keys: list[str], calls: list[Call], recorded: Path) -> tuple[str, dict[str, Any]]:
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
        recorded_calls = calls
        for index in range(finished + 1, len(stages) + 1):
            stage = stages[index - 1]
            if self.denoiser.built_in_guidance is not None:
                calls = steps.conditional_calls(self.denoiser, recorded_calls)
            log.info("stage %d/%d %s", index, len(stages), stage.kind)
            with _named(f"stage {index}/{len(stages)} {stage.kind}"):
                facts = [self.done.records[i, stages[i - 1].kind].facts for i in range(1, index)]
                work = self.done.work(index, stage.kind, keys[index])
                context = RunContext(calls, partial(original_of, self.denoiser, self.load), facts, work)
                if stage.shared and self.processes.size > 1:
                    context = replace(context, processes=self.processes)
                    start = None if index == 1 else absolute(self.stage_folder(index - 1, keys[index - 1]))
                    self.processes.shared(Task(index, start, absolute(recorded), facts, absolute(work)))
                fill = partial(steps.apply_stage, stage, self.denoiser, calls, context=context)
                self.done.do(index, stage.kind, keys[index], fill)
            self.done.clear_work(index, stage.kind, keys[index])
            self.reload(index, keys[index])
        errors: dict[str, Any] = {}
        for record in self.done.records.values():
            errors |= record.facts.get("layer_errors", {})
        return keys[-1], errors

    def reload(self, index: int, key: str) -> None:
        self.denoiser = steps.reload(self.denoiser, self.stage_folder(index, key))
        for done in range(1, index + 1):
            facts = self.done.records[done, self.recipe.stages[done - 1].kind].facts
            if "built_in_guidance" in facts:
                self.denoiser = self.denoiser.with_built_in_guidance(facts["built_in_guidance"])

    def stage_folder(self, index: int, key: str) -> Path:
        return self.done.folder(index, self.recipe.stages[index - 1].kind, key)

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
