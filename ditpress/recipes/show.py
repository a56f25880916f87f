"""Tables for people, on stdout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ditpress.files import write_atomic
from ditpress.recipes.check import Check
from ditpress.recipes.estimate import Estimate
from ditpress.recipes.result import Result
from ditpress.validate.bootstrap import CONFIDENCE
from ditpress.validate.figures import human_bytes
from ditpress.validate.gate.figures import figures_of
from ditpress.validate.gate.outputs import number, to_junit, to_markdown
from ditpress.validate.gate.rules import METRICS
from ditpress.validate.report import Fidelity, Parity, Report, Speed


def estimate_table(guess: Estimate) -> None:
    """What ``--dry-run`` prints."""
    console = Console()
    facts = _facts(f"{guess.recipe} on {guess.model}, dry run: nothing was written")
    facts.add_row("size", f"{human_bytes(guess.original_bytes)} → {human_bytes(guess.compressed_bytes)}")
    facts.add_row("effective bits", f"{guess.effective_bits:.2f} per parameter")
    facts.add_row("time", f"about {_duration(guess.seconds)} on this machine")
    facts.add_row("memory", f"about {human_bytes(guess.memory_bytes)}")
    facts.add_row("disk", f"up to {human_bytes(guess.disk_bytes)}")
    console.print(facts)
    rows = [(row.role, row.layers, row.parameters, row.format) for row in guess.roles]
    console.print(_linears("parameters", rows))


def inspection_table(found: dict[str, Any]) -> None:
    """What ``inspect`` prints."""
    console = Console()
    facts = _facts(str(found["model"]))
    for name in ("family", "class", "pipeline", "scheduler", "default_steps", "default_guidance"):
        facts.add_row(name.replace("_", " "), str(found[name]))
    facts.add_row("parameters", f"{found['parameters']:,}")
    facts.add_row("size", f"{human_bytes(found['bytes'])}, {found['effective_bits']:.2f} bits per parameter")
    console.print(facts)
    rows = [(row["role"], row["layers"], row["parameters"], row["format"]) for row in found["linears"]]
    console.print(_linears("weights", rows))


def finished(result: Result, as_json: bool, quiet: bool) -> None:
    """A run's report as its command was asked to show it."""
    if as_json:
        click.echo(result.report.data.to_json(), nl=False)
    elif not quiet:
        report_table(result)


def report_table(result: Result) -> None:
    """What a run prints at its end: the figures, and where everything is."""
    report: Report = result.report.data
    size, fidelity, speed = report.size, report.fidelity, report.speed
    facts = _facts(f"{report.recipe} on {report.model}")
    facts.add_row(
        "size",
        f"{human_bytes(size.original_bytes)} → {human_bytes(size.compressed_bytes)}, "
        f"{size.effective_bits:.2f} bits per parameter",
    )
    for name, before, after in (
        ("FID to real images", fidelity.original.fid, fidelity.compressed.fid),
        ("KID to real images", fidelity.original.kid, fidelity.compressed.kid),
        ("CLIP score", fidelity.original.clip, fidelity.compressed.clip),
    ):
        if before is not None and after is not None:
            facts.add_row(name, f"{before:.4g} → {after:.4g}")
    for name, value, unit in (
        ("FID to the original", fidelity.compressed.fid_to_original, ""),
        ("PSNR of pairs", fidelity.paired.psnr, " dB"),
        ("SSIM of pairs", fidelity.paired.ssim, ""),
        ("output SQNR", fidelity.paired.output_sqnr_db, " dB"),
    ):
        if value is not None:
            facts.add_row(name, f"{value:.4g}{unit}")
    facts.add_row("ONNX against torch", _parity(report.parity))
    if speed.original_ms is not None:
        facts.add_row("one step", _speed(speed))
    for warning in fidelity.warnings:
        facts.add_row("note", warning)
    facts.add_row("report", str(result.path / "report.html"))
    Console().print(facts)


def fidelity_table(title: str, fidelity: Fidelity) -> None:
    """What ``validate --against`` prints."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, figure in figures_of(fidelity).items():
        around = "–"
        if figure.error is not None:
            low, high = (figure.value + sign * CONFIDENCE * figure.error for sign in (-1, 1))
            around = f"{low:.4g} … {high:.4g}"
        table.add_row(METRICS[name], f"{figure.value:.4g}", around)
    Console().print(table)


def check_table(outcome: Check) -> None:
    """What ``check`` prints: failed rules first."""
    console = Console()
    if outcome.updated:
        console.print(f"{outcome.baseline}: written; review and commit it", soft_wrap=True)
        return
    table = Table(title=f"{outcome.out} against {outcome.baseline}", title_justify="left")
    for column in ("", "metric", "now", "baseline", "limit", "rule"):
        table.add_column(column, justify="left" if column in ("", "metric", "rule") else "right")
    for verdict in sorted(outcome.verdicts, key=lambda verdict: verdict.passed):
        numbers = (number(value) for value in (verdict.value, verdict.baseline, verdict.limit))
        mark = "[green]ok[/]" if verdict.passed else "[red]FAILED[/]"
        table.add_row(mark, escape(verdict.name), *numbers, verdict.rule)
    console.print(table)
    for note in outcome.notes:
        console.print(f"note: {note}")


def write_outcome(outcome: Check, junit: Path | None, markdown: Path | None) -> None:
    """JUnit XML into one file, Markdown at the end of another."""
    title = f"ditpress check {outcome.out}"
    if junit is not None:
        write_atomic(junit, to_junit(outcome.verdicts, title))
    if markdown is not None:  # a job summary is shared by all steps of the job
        before = markdown.read_bytes() if markdown.is_file() else b""
        write_atomic(markdown, before + to_markdown(outcome.verdicts, title).encode())


def speed_line(speed: Speed) -> None:
    """What ``bench`` prints."""
    Console().print(f"one denoising step, {speed.hardware}, {speed.threads} threads: {_speed(speed)}")


def _speed(speed: Speed) -> str:
    return f"{speed.original_ms:.4g} ms → {speed.compressed_ms:.4g} ms, {speed.speedup:.2f} times as fast"


def _parity(parity: Parity) -> str:
    end_to_end = f"differs by {parity.onnx_vs_torch_relative:.0e} of the range"
    if parity.pieces_relative is None:
        return end_to_end
    return f"{end_to_end} (int8 roundings), piece by piece by {parity.pieces_relative:.0e}"


def _facts(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _linears(counted: str, rows: Iterable[tuple[str, int, int, str]]) -> Table:
    """Linears by role: how many layers, how many of what is ``counted``, how they are stored."""
    table = Table(title="linears", title_justify="left")
    table.add_column("role")
    table.add_column("layers", justify="right")
    table.add_column(counted, justify="right")
    table.add_column("stored as")
    for role, layers, count, stored in rows:
        table.add_row(role, str(layers), f"{count:,}", stored)
    return table


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
