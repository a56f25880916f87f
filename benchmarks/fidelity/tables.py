"""The results as Markdown."""

from __future__ import annotations

from comparison.checks import checks_table
from comparison.results import Entry
from comparison.tables import cost, machine, missing_list, number, pairs
from fidelity.bounds import checks
from fidelity.results import Results
from fidelity.rows import Row

HEAD = (
    "| | bits | file | FID | to original | KID | CLIP | recognised | PSNR | output SQNR | seconds | memory |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)
SUMMARY_HEAD = (
    "| | bits | file | FID | recognised | PSNR | output SQNR |",
    "|---|---|---|---|---|---|---|",
)
ABLATION_HEAD = (
    "| | bits | file | FID | to original | PSNR | output SQNR | seconds | memory |",
    "|---|---|---|---|---|---|---|---|---|",
)
SECTIONS = (
    ("Recipes", ("original", "recipe")),
    ("Plain rounding at the same bits", ("plain",)),
    ("Other tools", ("peer",)),
)


def line(row: Row, entry: Entry) -> str:
    """One row of the table."""
    after, original = entry["fidelity"]["compressed"], row.kind == "original"
    kid = after["kid"]
    scores = [
        number(after["fid"], "{:.3f}"),
        "" if original else f"{after['fid_to_original']:.3f}",
        "" if kid is None else f"{1000 * kid:.3f}",
        number(after["clip"], "{:.2f}"),
        number(entry["recognised"], "{:.1%}"),
    ]
    pairs_and_cost = [""] * 4 if original else [*pairs(entry), *cost(entry)]
    return f"| {' | '.join([row.title, *_size(entry), *scores, *pairs_and_cost])} |"


def summary(results: Results) -> list[str]:
    """The recipes alone, and in as few figures as a first look needs."""
    lines = list(SUMMARY_HEAD)
    for row, entry in results.measured("original", "recipe"):
        after, paired = entry["fidelity"]["compressed"], [""] * 2 if row.kind == "original" else pairs(entry)
        scores = [number(after["fid"], "{:.2f}"), number(entry["recognised"], "{:.1%}")]
        lines.append(f"| {' | '.join([row.title, *_size(entry), *scores, *paired])} |")
    return [*lines, "", summary_conditions(results)]


def ablation_line(row: Row, entry: Entry) -> str:
    """One row of the table of ablations."""
    after = entry["fidelity"]["compressed"]
    scores = [number(after["fid"], "{:.3f}"), f"{after['fid_to_original']:.3f}"]
    return f"| {' | '.join([row.title, *_size(entry), *scores, *pairs(entry), *cost(entry)])} |"


def _size(entry: Entry) -> list[str]:
    file = entry["file_bytes"]
    size = f"{entry['bytes'] / 1e6:.2f} MB †" if file is None else f"{file / 1e6:.2f} MB"
    return [f"{entry['effective_bits']:.2f}", size]


def ablation_table(results: Results) -> list[str]:
    """Each recipe, and below it what it is without one of its parts."""
    lines: list[str] = []
    for recipe, entry in results.measured("recipe"):
        without = [(row, found) for row, found in results.measured("ablation") if row.of == recipe.name]
        if without:
            lines += [ablation_line(row, found) for row, found in [(recipe, entry), *without]]
    return [*ABLATION_HEAD, *lines] if lines else []


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
    return (
        f"{_drawn(results)} FID and KID (times 1000) to real images. {_SIZES}; † no ONNX file, the stored "
        "tensors, drawn in PyTorch. *Output SQNR*: on calls that no calibration saw. *Seconds* and *memory* "
        f"(peak of the process) of compressing, without drawing. {machine(results.conditions)}"
    )


def summary_conditions(results: Results) -> str:
    """How those of the summary were drawn."""
    return (
        f"{_drawn(results)} FID to real images. {_SIZES}. *Recognised*: of as many images with guidance, by "
        "a classifier. *Output SQNR*: on calls that no calibration saw."
    )


_SIZES = "*Bits*: everything stored, over the parameters of the original. *File*: the ONNX file"


def _drawn(results: Results) -> str:
    conditions = results.conditions
    return f"`{conditions['model']}`, {conditions['samples']} images, no guidance, equal seeds."
