"""What a recipe says about the storage of weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool, field_validator

from ditpress.compress.schema import Settings
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format


class WeightSpec(Settings):
    """A weight format, how many weights along K share one scale, and what kernels do with the scales."""

    format: str = Field(description="name of a format: int8, int4, fp4-e2m1, nf4, ternary, ...")
    group: int | Literal["channel"] = Field(
        description='weights per scale, or "channel": one scale per output row'
    )
    fold_scales: StrictBool = Field(
        default=True,
        description="multiply group scales into 8-bit weights: the fastest kernel, one more rounding to "
        "8 bits; only matters for groups with int8 activations",
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
