"""What all rows are measured against: made once, in the row ``original``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ditpress.calibrate.calls import Call, load_calls, record_calls, save_calls
from ditpress.files import write_atomic
from ditpress.load.denoiser import Denoiser
from ditpress.recipes.bench import export_original
from ditpress.recipes.steps import VALIDATION_SEEDS, run_call
from ditpress.validate import fidelity
from ditpress.validate.extractor import FeatureExtractor
from ditpress.validate.reference import MNIST_TEST, Reference, load_reference
from ditpress.validate.table import Networks
from ditpress.validate.validation import read_reference

# No guidance, for the reason given in benchmarks/figures.py: with it a model that lost accuracy can get
# nearer to the real images.
GUIDANCE = 1.0
FIRST_SEED = VALIDATION_SEEDS
CALL_SEED = 7 * VALIDATION_SEEDS  # the error of single steps: of noise that no stage calibrates or trains on
CALL_SAMPLES = 4
NOISE_SEEDS = 5  # sets of images behind the noise of the FID
ZOO = "zoo:mnist-dit"


@dataclass(frozen=True)
class Conditions:
    """How all rows are drawn."""

    model: str = ZOO
    samples: int = 500
    steps: int | None = None  # None: the model's own
    noise_sets: int = NOISE_SEEDS

    @property
    def reference(self) -> Reference | None:
        """The real images of the bundled model; of others there are none."""
        return load_reference(MNIST_TEST) if self.model == ZOO else None

    def draw(self, denoiser: Denoiser, first: int, description: str) -> Tensor:
        """Images float32 [n, C, H, W], of the seeds ``first ...``."""
        seeds = range(first, first + self.samples)
        return denoiser.sample(seeds, steps=self.steps, guidance=GUIDANCE, description=description)


class Original:
    """The folder of the row ``original``: float ONNX file, recorded calls with outputs, images, noise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.onnx = folder / "onnx" / "transformer"

    def make(self, denoiser: Denoiser, conditions: Conditions) -> None:
        """Write everything; ``facts.json`` last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        steps = conditions.steps or denoiser.default_steps
        calls = record_calls(denoiser, samples=CALL_SAMPLES, steps=steps, guidance=GUIDANCE, seed=CALL_SEED)
        save_calls(calls, self.folder / "calls")
        outputs = {str(index): run_call(denoiser.transformer, call) for index, call in enumerate(calls)}
        save_file(outputs, self.folder / "outputs.safetensors")
        export_original(denoiser, calls, self.folder / "onnx")
        extractor, reference = FeatureExtractor(), conditions.reference
        real: Tensor | None = None
        fids = []
        for index in range(conditions.noise_sets):
            first = FIRST_SEED + index * conditions.samples
            images = conditions.draw(denoiser, first, f"original, set {index + 1}")
            if index == 0:
                save_file({"images": images}, self.folder / "samples.safetensors")
            if reference is None:
                break
            if real is None:
                shape = (images.shape[1], images.shape[2], images.shape[3])
                real = read_reference(reference, Networks(extractor), shape).table["features"]
            fids.append(fidelity.fid(extractor.features(images), real))
        write_atomic(self.folder / "facts.json", json.dumps({"fids": fids}).encode())

    @property
    def facts(self) -> dict[str, Any]:
        """``fids``: to the real images, of each set of seeds."""
        return json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))

    @property
    def calls(self) -> list[Call]:
        return load_calls(self.folder / "calls")

    @property
    def outputs(self) -> list[Tensor]:
        """Of the original on each call."""
        tensors = load_file(self.folder / "outputs.safetensors")
        return [tensors[str(index)] for index in range(len(tensors))]

    @property
    def images(self) -> Tensor:
        """Of the first set of seeds."""
        return load_file(self.folder / "samples.safetensors")["images"]
