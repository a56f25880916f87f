"""Pieces of the tables in Markdown."""

from __future__ import annotations

from typing import Any

from comparison.results import Entry, Results


def number(value: float | None, form: str, unit: str = "") -> str:
    """``value`` as ``form`` says, and its unit; nothing for None."""
    return "" if value is None else form.format(value) + unit


def pairs(entry: Entry) -> list[str]:
    """PSNR and output SQNR."""
    found = entry["fidelity"]["paired"]
    return [number(found[key], "{:.2f}", " dB") for key in ("psnr", "output_sqnr_db")]


def cost(entry: Entry) -> list[str]:
    """Seconds and peak memory of compressing."""
    return [f"{entry['seconds']:.1f}", f"{entry['peak_rss_bytes'] / 1e9:.2f} GB"]


def missing_list(results: Results) -> list[str]:
    """Rows that were not measured, and why."""
    titles = {row.name: row.title for row in results.rows}
    return [f"- {titles.get(name, name)}: {reason}" for name, reason in results.missing.items()]


def machine(conditions: dict[str, Any]) -> str:
    """Processor, threads and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    threads = "1 thread" if conditions["threads"] == 1 else f"{conditions['threads']} threads"
    return f"{conditions['cpu']}, {threads}; {versions}."
