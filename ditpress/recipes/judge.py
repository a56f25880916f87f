"""Measure a finished run as it lies there: nothing is repaired, nothing of its report is believed.

The images come from OUT/onnx in the pipeline of OUT/model, against the original model with the same seeds.
Per layer, OUT/model is compared with the checkpoint before the stage that made the layer low-bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import onnxruntime
import torch
from torch import Tensor

from ditpress.calibrate.calls import Call, record_calls
from ditpress.errors import InputError
from ditpress.export.session import OnnxTransformer
from ditpress.files import hash_tree
from ditpress.load.checkpoint import load_compressed
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.load.weights import load_transformer
from ditpress.processes import join
from ditpress.recipes.checkpoint import MANIFEST, content_key
from ditpress.recipes.conclude import networks, real_images
from ditpress.recipes.recipe import Recipe, ValidationSpec, load_recipe
from ditpress.recipes.run import read_marker
from ditpress.recipes.sampling import Drawing, draw_table
from ditpress.recipes.steps import ERROR_CALLS, first_seed, spread
from ditpress.schema import parse
from ditpress.validate.gate.figures import Figure, Figures, Settings, figures_of
from ditpress.validate.paired import OutputSqnr, decibel, decibel_error, output_sqnr
from ditpress.validate.report import Fidelity
from ditpress.validate.scores import Score
from ditpress.validate.sensitivity import Energies, layer_energies, layer_sqnr, total_energy
from ditpress.validate.table import Networks
from ditpress.validate.validation import measure, read_reference
from ditpress.version import VERSION

CALL_SAMPLES = 8  # images on whose way from noise single steps and layers are compared


@dataclass(frozen=True)
class Judged:
    """What was measured; ``images``: the first same-seed samples by side, ``captions``: theirs.

    ``layers``: SQNR in dB of every low-bit layer, and of its pairs of timestep and SQNR; empty where stages/
    is gone.
    """

    settings: Settings
    fidelity: Fidelity
    figures: Figures
    sqnr: OutputSqnr
    layers: dict[str, tuple[float | None, list[tuple[float, float]]]]
    images: dict[str, Tensor]
    captions: list[str]


class Judge:
    """One measurement: loaded here, so that its settings can be looked at before it is taken."""

    def __init__(
        self,
        out: str | Path,
        settings: dict[str, Any] | None = None,
        *,
        seed: int | None = None,
        call_seed: int | None = None,
        against: str | None = None,
    ) -> None:
        """Open the run and the model to measure it against.

        Args:
            out: a finished run folder.
            settings: of :class:`ValidationSpec`, in the place of those of the run.
            seed: in the place of the run's; other images of the same models.
            call_seed: of the calls on which steps and layers are compared; None: ``seed``.
            against: MODEL in the place of the run's original.

        Raises:
            InputError: no finished run, its original was changed or is gone, or a setting is wrong.
        """
        self.path = Path(out)
        marker = read_marker(self.path)
        if marker is None or not (self.path / "recipe.yaml").is_file():
            raise InputError(f"{self.path}: no run folder of ditpress; give the OUT of a run")
        if not (self.path / "onnx" / "transformer" / "model.onnx").is_file():
            raise InputError(f"{self.path}: the run has no onnx/ yet; finish it by running its recipe again")
        self.recipe: Recipe = load_recipe(self.path / "recipe.yaml")
        given = {**self.recipe.validation.model_dump(), **(settings or {})}
        self.spec = parse(ValidationSpec, given, "validation")
        if not self.spec.samples:
            raise InputError("validation.samples is 0: there is nothing to measure; give --samples 128")
        self.seed = self.recipe.seed if seed is None else seed
        self.call_seed = self.seed if call_seed is None else call_seed
        self.against = against
        self.shipped = load_compressed(self.path / "model")
        self.original = load_denoiser(
            marker["model"] if against is None else against,
            scheduler=marker["scheduler"] if against is None else None,
            seed=marker["seed"],
        )
        if against is None and self.original.fingerprint != marker["fingerprint"]:
            raise InputError(
                f"{self.path}: {marker['model']} is not the model of this run any more; run its recipe again"
            )
        self.marker = marker
        self.networks: Networks = networks(self.spec)
        self.reference = real_images(self.original, self.spec)
        self.settings = self._settings()

    def _settings(self) -> Settings:
        scheduler = self.shipped.pipeline.scheduler
        config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        text = json.dumps([type(scheduler).__name__, config], sort_keys=True, default=str)
        main = self.networks.main
        inception, lpips = self.networks.inception, self.networks.lpips
        return Settings(
            model=self.marker["model"],
            fingerprint=self.marker["fingerprint"],
            against=None if self.against is None else self.original.fingerprint,
            samples=self.spec.samples,
            call_samples=CALL_SAMPLES,
            steps=self.spec.steps,
            guidance=self.spec.guidance,
            seed=self.seed,
            scheduler=type(scheduler).__name__,
            scheduler_sha256=hashlib.sha256(text.encode()).hexdigest(),
            extractor=self.networks.clip.name,
            extractor_sha256=self.networks.clip.sha256,
            num_features=main.num_features,
            inception_sha256=None if inception is None else inception.sha256,
            lpips_sha256=None if lpips is None else lpips.sha256,
            reference=None if self.reference is None else self.reference.name,
            reference_sha256=None if self.reference is None else self.reference.sha256,
        )

    def measure(self) -> Judged | None:
        """Draw and measure; None in all processes of ``torchrun`` but the first.

        Raises:
            InputError: the models draw images of different sizes.
            StageError: a model draws NaN.
        """
        onnx = OnnxTransformer(self.path / "onnx" / "transformer")
        drawing = Drawing(self.spec.samples, first_seed(self.seed), self.spec.steps, self.spec.guidance)
        work = self.path / "stages" / f".work-samples-{self._key()[:12]}"
        drawn = draw_table(
            self.original, self.shipped.with_transformer(onnx), drawing, self.networks, work, join()
        )
        if drawn is None:
            return None
        table, images = drawn
        calls = self.calls()
        sqnr = output_sqnr(self.original.transformer, onnx, calls)
        captions = self.original.captions(self.original.conditions(self.spec.samples))
        shape = images["original"].shape
        fidelity = measure(
            table,
            networks=self.networks,
            steps=self.spec.steps,
            guidance=self.spec.guidance,
            first_seed=drawing.first_seed,
            captions=captions,
            reference=self.reference,
            real=None
            if self.reference is None
            else read_reference(self.reference, self.networks, (shape[1], shape[2], shape[3])),
            sqnr=Score(sqnr.total_db, sqnr.total_error),
        )
        few = spread(calls, ERROR_CALLS)
        energies = layers_of(self.path, self.original, self.shipped, few)
        shutil.rmtree(work, ignore_errors=True)
        return Judged(
            settings=self.settings,
            fidelity=fidelity,
            figures=Figures(
                metrics={
                    **figures_of(fidelity),
                    **parity(self.original.transformer, self.shipped.transformer, onnx, few),
                    "bytes": Figure(value=folder_bytes(self.path / "model")),
                    "onnx_bytes": Figure(value=folder_bytes(self.path / "onnx")),
                },
                tables={
                    "timestep_sqnr_db": {
                        f"{step:g}": Figure(value=db, error=sqnr.errors_by_timestep.get(step))
                        for step, db in sqnr.by_timestep.items()
                    },
                    "layer_sqnr_db": {
                        name: sqnr_figure(rows)
                        for name, steps in energies.items()
                        if (rows := total_energy(steps)) is not None
                    },
                },
            ),
            sqnr=sqnr,
            layers={name: layer_sqnr(steps) for name, steps in energies.items()},
            images=images,
            captions=captions[: len(images["original"])],
        )

    def calls(self) -> list[Call]:
        """Calls of the original on its own way to the first images; no compression was calibrated on them.

        All that decides them is in the settings.
        """
        return record_calls(
            self.original,
            samples=CALL_SAMPLES,
            steps=self.spec.steps,
            guidance=self.spec.guidance,
            seed=first_seed(self.call_seed),
            description="calls of the original",
        )

    def _key(self) -> str:
        """Of the samples: all that decides their bits."""
        return content_key(
            self.settings.model_dump(mode="json"),
            self.original.fingerprint,
            hash_tree(self.path / "onnx"),
        )


def layers_of(out: Path, original: Denoiser, shipped: Denoiser, calls: Sequence[Call]) -> dict[str, Energies]:
    """Energies of output and error of the low-bit layers in OUT/model, by layer and timestep.

    Each layer is compared with the same one in the checkpoint before the stage that made it low-bit.
    """
    found: dict[str, Energies] = {}
    folders = {
        int(file.parent.name[:2]): file.parent for file in sorted(out.glob(f"stages/[0-9]*/{MANIFEST}"))
    }
    for index, folder in sorted(folders.items()):
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("facts", {})
        names = facts.get("layer_errors")
        if not names or index < 1:
            continue
        before = original.transformer if index == 1 else load_transformer(folders[index - 1])
        energies = layer_energies(before, shipped.transformer, calls, list(names))
        found |= {name: steps for name, (_, steps) in energies.items() if steps}
    return found


def parity(original: Any, checkpoint: Any, onnx: Any, calls: Sequence[Call]) -> dict[str, Figure]:
    """Whether the ONNX file and the checkpoint are one model: nearer to each other than to the original."""
    between = output_sqnr(checkpoint, onnx, calls)
    best = max(output_sqnr(original, model, calls).total_db for model in (checkpoint, onnx))
    return {
        "parity_db": Figure(value=between.total_db, error=between.total_error),
        "parity_margin_db": Figure(value=between.total_db - best),
    }


def sqnr_figure(rows: tuple[Tensor, Tensor]) -> Figure:
    """SQNR in dB of rows of signal and noise energy."""
    signal, noise = rows
    return Figure(value=decibel(float(signal.sum()), float(noise.sum())), error=decibel_error(signal, noise))


def folder_bytes(folder: Path) -> float:
    """Bytes of all files below a folder."""
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def versions() -> dict[str, str]:
    """Of the libraries behind the figures."""
    return {
        "ditpress": VERSION,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
