"""The results as Markdown, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ditpress.validate.gate.outputs import number
from gate.measure import PASSED, REFUSED, Entry, holds
from gate.rows import EVERYWHERE, PLANTS, SEEDS


def report(results: dict[str, Any]) -> list[str]:
    """What was planted and by what it was caught, every layer in turn, and other seeds."""
    entries, conditions = results["entries"], results["conditions"]
    lines = ["| planted | `ditpress check` | by |", "|---|---|---|"]
    for plant in PLANTS:
        entry = entries[plant.name]
        mark = entry["outcome"] if holds(plant, entry) else f"**{entry['outcome']}**"
        lines.append(f"| {plant.text} | {mark} | {_by(entry)} |")
    lines += ["", "| planted in one layer at a time | caught by `layer_sqnr_db` | least drop | rule |"]
    lines.append("|---|---|---|---|")
    for text in EVERYWHERE:
        entry = entries[text]
        least = min(entry["verdicts"], key=lambda verdict: verdict["baseline"] - verdict["value"])
        drop = least["baseline"] - least["value"]
        caught = f"{entry['caught']} of {entry['layers']} layers"
        lines.append(f"| {text} | {caught} | {drop:.1f} dB, {least['entry']} | {least['rule']} |")
    lines += ["", "| rule | baseline | over ten other seeds | limit | passed |", "|---|--:|--:|--:|--:|"]
    lines += _seeds([entries[f"seed {seed}"] for seed in SEEDS])
    drawn = f"{conditions['samples']} samples, {conditions['steps']} steps"
    lines += [
        "",
        f"`{conditions['recipe']}` of `{conditions['model']}`, {drawn}, rules as `--update` writes them;",
    ]
    lines.append(f"{results['cpu']}.")
    return lines


def failures(results: dict[str, Any]) -> list[str]:
    """What the gate did not do: a regression that was not caught, a seed that was."""
    entries = results["entries"]
    found = [f"{plant.name} not caught" for plant in PLANTS if not holds(plant, entries[plant.name])]
    for text in EVERYWHERE:
        found += [f"{text}: {name} not caught" for name in entries[text]["missed"]]
    for seed in SEEDS:
        entry = entries[f"seed {seed}"]
        if entry["outcome"] != PASSED:
            found.append(f"seed {seed} {entry['outcome']}: {_by(entry)}")
    return found


def _by(entry: Entry) -> str:
    """The rules that failed; of a refusal the settings that differ."""
    if entry["outcome"] == REFUSED:
        reason = str(entry["reason"])
        return reason.split("cannot be compared: ", 1)[-1].split("; ")[0]
    failed = [verdict for verdict in entry["verdicts"] if not verdict["passed"]]
    texts = [
        f"`{verdict['metric']}`{'' if verdict['entry'] is None else ' of ' + verdict['entry']} "
        f"{number(verdict['value'])}, limit {number(verdict['limit'])}"
        for verdict in failed
    ]
    return "; ".join(texts) or "no rule"


def _seeds(entries: list[Entry]) -> Iterator[str]:
    """A line per rule: the range of its figure (of a table, of its worst entry) over the seeds."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for verdict in entry.get("verdicts", ()):
            columns.setdefault(f"`{verdict['metric']}` {verdict['rule']}", []).append(verdict)
    for text, verdicts in columns.items():
        values = [verdict["value"] for verdict in verdicts]
        limits = [verdict["limit"] for verdict in verdicts]
        passed = sum(verdict["passed"] for verdict in verdicts)
        before = "–" if verdicts[0]["entry"] is not None else number(verdicts[0]["baseline"])
        cells = (before, _range(values), _range(limits), f"{passed} of {len(entries)}")
        yield f"| {text} | {' | '.join(cells)} |"


def _range(values: list[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} … {high}"
