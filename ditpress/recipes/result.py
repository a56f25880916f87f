"""What a finished run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusers import DiffusionPipeline

from ditpress.load.checkpoint import load_compressed
from ditpress.validate.report import Report, load_report


@dataclass(frozen=True)
class ShownReport:
    """A report, field by field, that shows itself in a notebook with its pictures."""

    data: Report
    page: Path

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.data, name)

    def _repr_html_(self) -> str:
        return self.page.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Result:
    """A finished run in the folder ``path``."""

    path: Path

    @cached_property
    def report(self) -> ShownReport:
        """report.json, and in a notebook report.html."""
        return ShownReport(load_report(self.path / "report.json"), self.path / "report.html")

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """The compressed model as an ordinary diffusers pipeline."""
        return load_compressed(self.path / "model").pipeline

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
