"""report.json, schema 1: what a run did and what came of it, for people, CI and dashboards.

Every field is always present, but for those that came later and have a default: older files are read as if
their figures had not been asked for. ``null`` means that the figure was not asked for (no samples wanted, no
reference images, no ONNX export), never that it failed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ditpress.errors import InputError
from ditpress.files import write_atomic

SCHEMA = 1


class Strict(BaseModel):
    """Unknown fields are refused, and so are infinities and NaN, which JSON cannot hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Environment(Strict):
    """Where the run took place. ``isa``: the kernels in use; ``threads``: of torch."""

    python: str
    platform: str
    torch: str
    diffusers: str
    onnxruntime: str
    cpu: str
    isa: str
    threads: int


class Size(Strict):
    """Bytes on disk. Everything that is stored counts, modules shared between blocks once.

    ``parameters``: weights and biases of the compressed model, whatever bits hold them;
    ``effective_bits`` = 8 · compressed_bytes / parameters; ``layers``: format by module name.
    """

    parameters: int
    original_bytes: int
    compressed_bytes: int
    onnx_bytes: int | None
    effective_bits: float
    layers: dict[str, str]


class ExtractorId(Strict):
    """The network behind FID, KID, CLIP and lpips; figures of two extractors must not be compared."""

    name: str
    sha256: str
    num_features: int


class ReferenceId(Strict):
    """The real images behind FID and KID."""

    name: str
    sha256: str
    count: int


class Scores(Strict):
    """Of one set of samples: distances to the reference images, CLIP score to the captions.

    ``inception_score``: of Inception-v3, else of CLIP as zero-shot classifier of the captions.
    """

    fid: float | None
    kid: float | None
    clip: float | None
    sfid: float | None = None
    cmmd: float | None = None
    precision: float | None = None
    recall: float | None = None
    inception_score: float | None = None


class CompressedScores(Scores):
    """The same, and FID and KID to the original model's own samples with the same seeds."""

    fid_to_original: float | None
    kid_to_original: float | None


class PairedScores(Strict):
    """Of same-seed pairs.

    ``lpips``: with trained weights on ``lpips_network``; where that is null, feature distance in the named
    extractor with unit layer weights.
    """

    psnr: float | None
    ssim: float | None
    lpips: float | None
    output_sqnr_db: float | None


class Interval(Strict):
    """95 % confidence interval of a figure, and its standard error over other samples (bootstrap)."""

    low: float
    high: float
    standard_error: float


class Fidelity(Strict):
    """How near the compressed model's samples are to the original's and to real images.

    Sample i of both models was drawn from the seed ``first_seed + i``. ``inception``: the network behind FID,
    sFID, KID, precision, recall and Inception Score, where it is not ``extractor``; ``lpips_network``: of
    LPIPS. ``intervals``: by the place of the figure, such as ``compressed.fid``.
    """

    samples: int
    first_seed: int | None
    steps: int | None
    guidance: float | None
    kid_subset_size: int | None
    extractor: ExtractorId | None
    reference: ReferenceId | None
    original: Scores
    compressed: CompressedScores
    paired: PairedScores
    warnings: list[str]
    inception: ExtractorId | None = None
    lpips_network: ExtractorId | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)

    @classmethod
    def without_samples(cls, output_sqnr_db: float | None = None) -> Fidelity:
        """The record of a run that drew no samples; the error on recorded calls may still be known."""
        return cls(
            samples=0,
            first_seed=None,
            steps=None,
            guidance=None,
            kid_subset_size=None,
            extractor=None,
            reference=None,
            original=Scores(fid=None, kid=None, clip=None),
            compressed=CompressedScores(
                fid=None, kid=None, clip=None, fid_to_original=None, kid_to_original=None
            ),
            paired=PairedScores(psnr=None, ssim=None, lpips=None, output_sqnr_db=output_sqnr_db),
            warnings=[],
        )


class Parity(Strict):
    """The exported ONNX model against torch, on outputs of the transformer at two batch sizes.

    Largest absolute difference end to end, PSNR in dB, and the difference as a part of the output's range.
    ``pieces_relative``: the largest difference of any piece of the graph cut at its int8 layers, as a part of
    that piece's range (see :mod:`ditpress.export.openloop`); null where end to end says enough.
    ``fusion_relative``: the graph with fused nodes against the one without, both computed by the functions in
    the file, as a part of the output's range; null where nothing was fused.
    """

    onnx_vs_torch_max_abs: float | None
    onnx_vs_torch_psnr: float | None
    onnx_vs_torch_relative: float | None
    pieces_relative: float | None
    fusion_relative: float | None


class Speed(Strict):
    """One denoising step, same inputs, paired runs; medians in milliseconds."""

    hardware: str
    threads: int
    original_ms: float | None
    compressed_ms: float | None
    speedup: float | None


class StageRecord(Strict):
    """One stage of the recipe: wall time and the process's peak resident memory when it ended."""

    name: str
    seconds: float
    peak_rss_bytes: int


class TimestepDetail(Strict):
    """SQNR of the transformer's output, or of one layer's, at one timestep, in dB."""

    timestep: float
    sqnr_db: float


class LayerDetail(Strict):
    """One module that owns tensors, with all that wraps it: its size, and its error where it was quantized.

    ``weight_error``: ‖Ŵ - W‖ / ‖W‖ (Frobenius). ``output_sqnr_db``: of its output, given the input that
    it has in the reference transformer, so without the errors of the layers before it; ``timesteps``: the
    same at single timesteps, in the order of sampling.
    """

    name: str
    format: str
    original_bytes: float
    compressed_bytes: float
    weight_error: float | None
    output_sqnr_db: float | None
    timesteps: list[TimestepDetail] = Field(default_factory=list)


class Details(Strict):
    """Where the bytes and the error are; what the plots of report.html show."""

    layers: list[LayerDetail]
    timesteps: list[TimestepDetail]


class Report(Strict):
    """The whole of report.json."""

    schema_version: Literal[1] = Field(alias="schema")
    recipe: str
    model: str
    seed: int
    environment: Environment
    size: Size
    fidelity: Fidelity
    parity: Parity
    speed: Speed
    stages: list[StageRecord]
    details: Details | None = None

    def to_json(self) -> str:
        """Indented JSON, fields in the order of the schema."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Write report.json atomically."""
        write_atomic(Path(path), self.to_json().encode())


def load_report(path: Path) -> Report:
    """Read and check a report.json.

    Raises:
        InputError: missing, not JSON, of another schema version, or with a missing, unknown or bad field.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the report.json of a run") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); run the recipe again") from error
    return parse_report(data, str(path))


def parse_report(data: Any, name: str = "report") -> Report:
    """Check the parsed JSON of a report; ``name`` is what errors call it."""
    if not isinstance(data, dict):
        raise InputError(
            f"{name}: a JSON {type(data).__name__}; expected an object with the fields of a report"
        )
    version = data.get("schema")
    if version != SCHEMA:
        raise InputError(
            f"{name}: report schema {version!r}; this version of ditpress reads schema {SCHEMA}: "
            "run the recipe again or use the ditpress that wrote it"
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{name}: field {where}: {first['msg']} ({error.error_count()} bad fields); "
            f"expected report schema {SCHEMA}"
        ) from error
