"""The results as Markdown."""

from __future__ import annotations

from comparison.checks import checks_table
from comparison.results import Entry
from comparison.tables import cost, machine, missing_list, number, pairs
from pruning.bounds import checks, spread
from pruning.results import Results, over_seeds
from pruning.rows import BUDGET, LONG, ORIGINAL, ROWS, Row

HEAD = (
    "| | parameters | bits | file | FID | to original | KID | recognised | PSNR | output SQNR | speed "
    "| seconds | memory |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
SUMMARY_HEAD = (
    "| | file | times smaller | times faster | FID | recognised | output SQNR |",
    "|---|---|---|---|---|---|---|",
)
SEEDS_HEAD = (
    "| | seeds | output SQNR | FID | recognised |",
    "|---|---|---|---|---|",
)
SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Recipes", ("original", "chain")),
    ("Half of the blocks, distilled", ("depth",)),
    ("Half of the heads and hidden units, distilled", ("width",)),
    ("Without one of its parts, or with another", ("part",)),
)


def line(row: Row, entry: Entry) -> str:
    """One row of the table."""
    after, original = entry["fidelity"]["compressed"], row.kind == "original"
    cells = [
        _title(row, entry),
        f"{entry['parameters'] / 1e6:.2f} M",
        f"{entry['effective_bits']:.2f}",
        f"{entry['file_bytes'] / 1e6:.2f} MB",
        number(after["fid"], "{:.3f}"),
        "" if original else f"{after['fid_to_original']:.3f}",
        "" if after["kid"] is None else f"{1000 * after['kid']:.3f}",
        number(entry["recognised"], "{:.1%}"),
        *(["", ""] if original else pairs(entry)),
        f"{entry['speed']['speedup']:.2f}",
        *(["", ""] if original else cost(entry)),
    ]
    return f"| {' | '.join(cells)} |"


def summary(results: Results) -> list[str]:
    """The recipes alone, and in as few figures as a first look needs."""
    lines = list(SUMMARY_HEAD)
    original = results.get(ORIGINAL.name)
    for row, entry in results.measured("original", "chain"):
        first = row.kind == "original" or original is None
        smaller = "" if first else f"{4 * original['parameters'] / entry['file_bytes']:.1f}"
        faster = "" if first else f"{entry['speed']['speedup']:.2f}"
        cells = [
            row.title,
            f"{entry['file_bytes'] / 1e6:.2f} MB",
            smaller,
            faster,
            number(entry["fidelity"]["compressed"]["fid"], "{:.2f}"),
            number(entry["recognised"], "{:.1%}"),
            "" if first else pairs(entry)[1],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "The same model and images. *Smaller*: than the original's parameters in fp32. *Faster*: a step than "
        "the original's in fp32, both in ONNX Runtime. "
    )
    return [*lines, "", note + machine(results.conditions)]


def _title(row: Row, entry: Entry) -> str:
    """With the blocks that stayed."""
    kept = "; ".join(", ".join(map(str, indices)) for indices in entry["kept_blocks"].values())
    return f"{row.title} ({kept})" if kept else row.title


def seeds_table(results: Results) -> list[str]:
    """Means over the seeds of everything that was trained from several of them."""
    lines = []
    for of in dict.fromkeys(row.of for row in ROWS if row.of):
        found = over_seeds(results, of)
        if found is None:
            continue
        measured = f"{found.count}" if found.complete else f"{found.count} of {found.wanted}"
        share = f"{found.recognised.value:.1%}"
        figures = [spread(found.sqnr, "sqnr"), spread(found.fid, "fid"), share]
        lines.append(f"| {of} | {measured} | {' | '.join(figures)} |")
    return [*SEEDS_HEAD, *lines] if lines else []


def report(results: Results) -> list[str]:
    """Everything, as it stands between the marks of docs/pruning.md."""
    lines: list[str] = []
    for title, kinds in SECTIONS:
        rows = [line(row, entry) for row, entry in results.measured(*kinds)]
        if rows:
            lines += ["", f"### {title}", "", *HEAD, *rows]
    if seeds := seeds_table(results):
        lines += ["", "### Means over seeds", "", *seeds]
    if missing := [*missing_list(results), *_left(results)]:
        lines += ["", "### Not measured", "", *missing]
    lines += ["", "### Required", "", *checks_table(checks(results))]
    return [*lines, "", conditions_line(results)]


def _left(results: Results) -> list[str]:
    """Rows that nobody has asked for yet."""
    names = [row.name for row in ROWS if row.name not in {*results.entries, *results.missing}]
    return [f"- yet: {', '.join(names)}"] if names else []


def conditions_line(results: Results) -> str:
    """How the figures were drawn."""
    conditions = results.conditions
    budget, long = (
        ", ".join(f"`{setting}`" for settings in of.values() for setting in settings) for of in (BUDGET, LONG)
    )
    return (
        f"`{conditions['model']}`, {conditions['samples']} images, no guidance, equal seeds, through ONNX. "
        "In brackets the blocks that stayed. FID and KID (times 1000) to real images. *Bits*: everything "
        "stored, over the parameters of the original. *File*: the ONNX file. *Recognised*: of as many images "
        "with guidance, by a classifier. *Output SQNR*: on calls that no calibration saw. *Speed*: steps of "
        "this model in the time of one of the original in fp32, both in ONNX Runtime, in turn, batch of two. "
        "*Seconds* and *memory* (peak of the process) of compressing, without drawing. Trained with: "
        f"{budget}; recipes with: {long}. {machine(conditions)}"
    )
