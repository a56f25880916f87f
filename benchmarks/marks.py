"""What the benchmarks write into Markdown files: the text between two marks."""

from __future__ import annotations

from pathlib import Path


def write_between(path: Path, name: str, lines: list[str]) -> None:
    """Replace what stands between ``<!-- name:start -->`` and ``<!-- name:end -->`` in a Markdown file.

    Raises:
        ValueError: the file does not hold each mark once, in this order.
    """
    text = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{path}: expected {start} and then {end}, each once")
    head, rest = text.split(start)
    _, tail = rest.split(end)
    path.write_text("\n".join([head + start, *lines, end + tail]), encoding="utf-8")
