"""Verdicts for machines and for review: JUnit XML, Markdown, plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from ditpress.validate.gate.compare import Verdict


def number(value: float | None) -> str:
    """Five significant digits, large counts in full."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"


def to_data(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "passed": all(verdict.passed for verdict in verdicts),
        "rules": [
            {
                "metric": verdict.metric,
                "entry": verdict.entry,
                "rule": verdict.rule,
                "value": verdict.value,
                "baseline": verdict.baseline,
                "limit": verdict.limit,
                "margin": verdict.margin,
                "passed": verdict.passed,
            }
            for verdict in verdicts
        ],
    }


def to_junit(verdicts: Sequence[Verdict], suite: str) -> bytes:
    """One test case per rule, as CI systems read it (the schema of Jenkins' xUnit plugin)."""
    failures = sum(not verdict.passed for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failures), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    element = ElementTree.SubElement(root, "testsuite", {"name": suite, **counts})
    for verdict in verdicts:
        case = {"classname": "ditpress.check", "name": f"{verdict.metric}: {verdict.rule}", "time": "0"}
        test = ElementTree.SubElement(element, "testcase", case)
        if not verdict.passed:
            failure = ElementTree.SubElement(test, "failure", {"message": f"{verdict.name} {verdict.reason}"})
            failure.text = (
                f"value {number(verdict.value)}, baseline {number(verdict.baseline)}, limit "
                f"{number(verdict.limit)} with a noise margin of {number(verdict.margin)}"
            )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def to_markdown(verdicts: Sequence[Verdict], title: str) -> str:
    """A table for a job summary or a comment."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    head = f"{len(failed)} of {len(verdicts)} rules failed" if failed else f"all {len(verdicts)} rules hold"
    lines = [f"### {_escape(title)}: {head}", ""]
    lines += ["| | metric | now | baseline | limit | rule |", "|---|---|--:|--:|--:|---|"]
    for verdict in (*failed, *(verdict for verdict in verdicts if verdict.passed)):
        cells = (
            number(verdict.value),
            number(verdict.baseline),
            number(verdict.limit),
            _escape(verdict.rule),
        )
        mark = "✅" if verdict.passed else "❌"
        lines.append(f"| {mark} | {_escape(verdict.name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
