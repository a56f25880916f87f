"""Requirements and tables, from results that can be worked out by hand."""

from __future__ import annotations

import pytest
from speed_results import CONDITIONS, results

from marks import write_between
from speed.bounds import BOUNDS, share_of_peak
from speed.results import Results, ours_to, to_ours
from speed.rounds import Spread
from speed.tables import bounds_table, full_report, milliseconds, readme_section, table


def bound(text: str):
    return next(bound for bound in BOUNDS if text in bound.text)


def test_ratios_of_an_entry():
    found = results().entry("dit-xl-256", 2)
    assert ours_to(found, "openvino-int4").median == pytest.approx(0.8)  # 0.5, 0.8, 0.8
    assert to_ours(found, "openvino-int4").median == pytest.approx(1.25)
    assert ours_to(found, "openvino-w8a8") is None


def test_bounds():
    found = results()
    assert bound("INT4").value(found) == pytest.approx(0.8)
    assert bound("INT4").holds(found) is False  # 0.74 is required
    assert bound("W8A8 static").holds(found) is None  # did not run
    assert bound("one thread").value(found) == pytest.approx(1.9)
    assert bound("one thread").holds(found) is True
    # 500 MB against 1.25 * 400 + 150
    assert bound("memory").value(found) == pytest.approx(500 / 650)
    assert bound("int8 peak").value(found) == pytest.approx(2 * 512 * 1152**2 / 0.0016 / 1e12)


def test_share_without_a_peak():
    found = results()
    for _, _, one in found.entries():
        one["peaks"]["int8"] = {}
    assert share_of_peak(found, "linear", 2, "ours-w4a8", "1152x1152@512") is None
    assert bound("int8 peak").holds(found) is None


def test_peak_is_the_best_of_all_entries():
    found = results()
    found.entry("linear", 2)["peaks"]["int8"]["2"] = 2e12
    assert found.peak(2) == 2e12
    assert found.peak(1) == 5e11
    assert found.bandwidth(1) is None


def test_every_bound_on_nothing():
    empty = Results(CONDITIONS)
    assert all(bound.holds(empty) is None for bound in BOUNDS)
    assert len(bounds_table(empty)) == 2 + len(BOUNDS)


def test_markdown_table():
    assert table(("", "ms"), [("a", "1"), ("b", "2")]) == [
        "|  | ms |",
        "|---|---:|",
        "| a | 1 |",
        "| b | 2 |",
    ]
    assert milliseconds(Spread(0.2, 0.19, 0.25)) == "200 (190–250)"
    assert milliseconds(Spread(0.0012, 0.0011, 0.0013)) == "1.20 (1.10–1.30)"


def test_reports_name_what_did_not_run():
    full, short = "\n".join(full_report(results())), "\n".join(readme_section(results(), "speed.svg"))
    for text in (full, short):
        assert "Not run: OpenVINO W8A8: no module named nncf." in text
        assert "| OpenVINO INT4 | 200 (162–225) | 0.80 (0.65–0.80) | 400 MB |" in text
    assert "1.60 (85%)" in full
    assert "![" in short
    assert "(speed.svg)" in short


def test_write_between(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- speed:start -->\nold\n<!-- speed:end -->\nb\n")
    write_between(readme, "speed", ["new", "lines"])
    assert readme.read_text() == "a\n<!-- speed:start -->\nnew\nlines\n<!-- speed:end -->\nb\n"
    with pytest.raises(ValueError, match="figures:start"):
        write_between(readme, "figures", [])


def test_results_survive_a_restart(tmp_path):
    path = tmp_path / "results.json"
    results().save(path)
    again = Results.resume(path, CONDITIONS)
    assert again.workloads == results().workloads
    assert Results.resume(path, CONDITIONS | {"library": "other"}).workloads == {}
    assert Results.resume(tmp_path / "missing.json", CONDITIONS).workloads == {}
