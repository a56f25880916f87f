"""What stages have in common that learn from data where there is some: the setting, and its digest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field

from ditpress.calibrate.data import LabelledLatents, load_data
from ditpress.compress.stage import Stage
from ditpress.errors import InputError
from ditpress.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ditpress.load.denoiser import Denoiser


class DataStage(Stage):
    """A stage that works data-free, or with latents and labels. The original's answers are the target."""

    data: str | None = Field(
        default=None,
        description=".npz or .safetensors with latents [N, C, H, W], as the transformer sees them without "
        "noise, and labels [N]; null: data-free",
    )
    data_sha256: str | None = Field(
        default=None, description="of the file data, filled in by a run: equal recipes mean equal bits"
    )

    def completed(self, later: Sequence[Stage]) -> Self:
        if self.data is None:
            return self
        if not Path(self.data).is_file():
            raise InputError(f"{self.kind}.data {self.data}: no such file")
        found = sha256_file(Path(self.data))
        if self.data_sha256 not in (None, found):
            raise InputError(
                f"{self.kind}.data {self.data}: is another file than this recipe was written with; give that "
                f"one, or set {self.kind}.data_sha256=null"
            )
        return self.model_copy(update={"data_sha256": found})

    def loaded_data(self, denoiser: Denoiser) -> LabelledLatents | None:
        """The data, checked against the model; None: there is none. Raises InputError."""
        return None if self.data is None else load_data(self.data, denoiser)
