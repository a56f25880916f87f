"""What a recipe says about the storage of weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool, field_validator

from ditpress.compress.quantize.gptq import DAMPING
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format
from ditpress.schema import Settings


class GptqSpec(Settings):
    """How GPTQ rounds; used where ``rounding`` is ``gptq``."""

    damping: float = Field(
        default=DAMPING,
        gt=0.0,
        description="added to the second moment, as a share of its mean diagonal; 0.01 in the paper",
    )
    act_order: StrictBool = Field(default=True, description="columns with the largest inputs first")
    refit: StrictBool = Field(
        default=False, description="scales of least output error for the codes that were found"
    )


class WeightSpec(Settings):
    """A weight format, how many weights along K share one scale, how weights are rounded, and what kernels do
    with the scales."""

    format: str = Field(description="name of a format: int8, int4, fp4-e2m1, nf4, ternary, ...")
    group: int | Literal["channel"] = Field(
        description='weights per scale, or "channel": one scale per output row'
    )
    fold_scales: StrictBool = Field(
        default=True,
        description="multiply group scales into 8-bit weights: the fastest kernel, one more rounding to "
        "8 bits; only matters for groups with int8 activations",
    )
    rounding: Literal["nearest", "gptq"] = Field(
        default="nearest", description="gptq: later columns make up for the error of earlier ones"
    )
    gptq: GptqSpec = GptqSpec()
    scale_ratios: Literal["free", "power-of-two", "power-of-two-m2"] = Field(
        default="free",
        description="power-of-two: the scales of a row differ by powers of two only, those of least error; "
        "power-of-two-m2: those of ZeroQuant-FP's equation M2. For fp4-e2m1, which then becomes E4M3 exactly",
    )
    tables: Literal["error", "indicator"] = Field(
        default="error",
        description="how a format with several tables (fp4) chooses that of an output channel: by the errors "
        "they leave, or by HQ-DiT's ratio of large to small weights",
    )

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        get_format(value)
        return value

    @field_validator("group", mode="before")
    @classmethod
    def _known_group(cls, value: object) -> object:
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value != "channel" and not whole:
            raise InputError(f'group: expected a positive whole number or "channel", got {value!r}')
        return value

    def group_size(self, in_features: int) -> int:
        """Weights per scale in a layer of ``in_features`` inputs."""
        return in_features if self.group == "channel" else int(self.group)


class LowRankSpec(Settings):
    """A branch ``up(down(x))`` beside a quantized linear, which takes what rounding loses most."""

    rank: int = Field(default=32, ge=1, description="of the branch, at most; 32 in DiTAS and in SVDQuant")
    share: float = Field(
        default=1 / 32,
        gt=0.0,
        le=1.0,
        description="of a layer's smaller side that the rank may be, at most: 32 is 1/36 of DiT-XL/2's width "
        "and costs 0.4 bits a weight; in a model a sixth as wide it would cost 2.7",
    )
    method: Literal["loftq", "svdquant"] = Field(
        default="loftq",
        description="loftq: quantize first, the branch takes the error, and so on in turn (DiTAS); svdquant: "
        "the branch takes the largest part of the weight first, and the turns end where they stop helping",
    )
    iterations: int = Field(
        default=10, ge=1, description="turns, the best of which is kept: 10 in DiTAS, at most 100 in SVDQuant"
    )
    whiten: StrictBool | None = Field(
        default=None,
        description="least error of the output on recorded inputs, not of the weight; null: only "
        "beside weights rounded to nearest",
    )
    weights: WeightSpec = WeightSpec(format="int8", group="channel")

    def whitens(self, rounding: str) -> bool:
        """Whether the branch is fitted to the inputs, beside a weight with this ``rounding``.

        Round to nearest leaves the error of large inputs to the branch. GPTQ makes up for it by itself and is
        helped more by a smaller range of the weights: on zoo:mnist-dit with rank 16 whitening gives 34.5 dB
        instead of 32.1 with nearest, and 39.9 instead of 40.6 with GPTQ.
        """
        return rounding == "nearest" if self.whiten is None else self.whiten

    def rank_of(self, rows: int, columns: int) -> int:
        """The rank of the branch beside a layer of ``rows`` x ``columns`` weights: 1 or more."""
        return max(1, min(self.rank, int(self.share * min(rows, columns))))
