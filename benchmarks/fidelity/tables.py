"""The results as Markdown."""

from __future__ import annotations

from fidelity.bounds import Check, Verdict, checks
from fidelity.results import Entry, Results
from fidelity.rows import ROWS, Row

HEAD = (
    "| | bits | file | FID | to original | KID | CLIP | recognised | PSNR | output SQNR | seconds | memory |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)
ABLATION_HEAD = (
    "| | bits | file | PSNR | output SQNR | seconds | memory |",
    "|---|---|---|---|---|---|---|",
)
SECTIONS = (
    ("Recipes", ("original", "recipe")),
    ("Plain rounding at the same bits", ("plain",)),
    ("Other tools", ("peer",)),
)
_SIGN: dict[Verdict, str] = {True: "yes", False: "**no**", None: "not measured"}


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else form.format(value) + unit


def line(row: Row, entry: Entry) -> str:
    """One row of the table."""
    after, original = entry["fidelity"]["compressed"], row.kind == "original"
    kid = after["kid"]
    scores = [
        _number(after["fid"], "{:.3f}"),
        "" if original else f"{after['fid_to_original']:.3f}",
        "" if kid is None else f"{1000 * kid:.3f}",
        _number(after["clip"], "{:.2f}"),
        _number(entry["recognised"], "{:.1%}"),
    ]
    pairs_and_cost = [""] * 4 if original else [*_pairs(entry), *_cost(entry)]
    return f"| {' | '.join([row.title, *_size(entry), *scores, *pairs_and_cost])} |"


def ablation_line(row: Row, entry: Entry) -> str:
    """One row of the table of ablations: what 100 pairs of images can tell."""
    return f"| {' | '.join([row.title, *_size(entry), *_pairs(entry), *_cost(entry)])} |"


def _size(entry: Entry) -> list[str]:
    file = entry["file_bytes"]
    size = f"{entry['bytes'] / 1e6:.2f} MB †" if file is None else f"{file / 1e6:.2f} MB"
    return [f"{entry['effective_bits']:.2f}", size]


def _pairs(entry: Entry) -> list[str]:
    pairs = entry["fidelity"]["paired"]
    return [_number(pairs[key], "{:.2f}", " dB") for key in ("psnr", "output_sqnr_db")]


def _cost(entry: Entry) -> list[str]:
    return [f"{entry['seconds']:.1f}", f"{entry['peak_rss_bytes'] / 1e9:.2f} GB"]


def ablation_table(results: Results) -> list[str]:
    """Each recipe, and below it what it is without one of its parts."""
    lines: list[str] = []
    for recipe, entry in results.measured("recipe"):
        without = [(row, found) for row, found in results.measured("ablation") if row.of == recipe.name]
        if without:
            lines += [ablation_line(row, found) for row, found in [(recipe, entry), *without]]
    return [*ABLATION_HEAD, *lines] if lines else []


def missing_list(results: Results) -> list[str]:
    """Rows that were not measured, and why."""
    titles = {row.name: row.title for row in ROWS}
    return [f"- {titles.get(name, name)}: {reason}" for name, reason in results.missing.items()]


def checks_table(found: list[Check]) -> list[str]:
    """What is required, and what came of it."""
    lines = ["| required | measured | holds |", "|---|---|---|"]
    return [*lines, *(f"| {check.text} | {check.measured} | {_SIGN[check.holds]} |" for check in found)]


def report(results: Results) -> list[str]:
    """Everything, as it stands between the marks of docs/fidelity.md."""
    lines: list[str] = []
    for title, kinds in SECTIONS:
        rows = [line(row, entry) for row, entry in results.measured(*kinds)]
        if rows:
            lines += ["", f"### {title}", "", *HEAD, *rows]
    if ablations := ablation_table(results):
        lines += ["", "### Without one of its parts", "", *ablations]
    if missing := missing_list(results):
        lines += ["", "### Not measured", "", *missing]
    lines += ["", "### Required", "", *checks_table(checks(results))]
    return [*lines, "", conditions_line(results)]


def conditions_line(results: Results) -> str:
    """How the figures were drawn."""
    conditions = results.conditions
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    threads = "1 thread" if conditions["threads"] == 1 else f"{conditions['threads']} threads"
    return (
        f"`{conditions['model']}`, {conditions['samples']} images, no guidance, equal seeds. FID and KID "
        "(times 1000) to real images. *Bits*: everything stored, over the parameters of the original. "
        "*File*: the ONNX file; † no ONNX file, the stored tensors, drawn in PyTorch. *Output SQNR*: on "
        "calls that no calibration saw. *Seconds* and *memory* (peak of the process) of compressing, without "
        f"drawing. {conditions['cpu']}, {threads}; {versions}."
    )
