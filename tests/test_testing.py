"""The pytest plugin, by tests that run tests. What it measures is measured in recipes/test_check.py."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from ditpress.errors import InputError
from ditpress.recipes import check as module
from ditpress.recipes.check import Check
from ditpress.validate.gate.compare import Verdict

pytest_plugins = ["pytester"]

GATED = """
    def test_gate(assert_fidelity):
        assert_fidelity("out", "gate.json", samples=8)
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``check`` is asked; its verdict on PSNR is 27 dB, and fails where the test sets ``limit``."""
    calls: list[dict[str, Any]] = []

    def stand_in(out: Path, baseline: Path, settings: dict[str, Any], **options: Any) -> Check:
        calls.append({"out": out, "baseline": baseline, **settings, **options})
        if options["update"]:
            return Check(out, baseline, [], [], updated=True)
        limit = (options["rules"] or {}).get("psnr", {}).get("min", 24.0)
        reason = "" if limit <= 27 else f"27 is below {limit}"
        verdict = Verdict("psnr", f"min {limit}", 27.0, 28.0, limit, 0.0, None, reason)
        return Check(out, baseline, [verdict], [])

    monkeypatch.setattr(module, "check", stand_in)
    return calls


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """With the plugin by its module; where it is installed its entry point would load it a second time."""
    return pytester.runpytest_inprocess(
        "-p", "no:ditpress", "-p", "ditpress.testing", "-p", "no:xdist", *arguments
    )


def test_the_fixture_measures_relative_to_the_root(
    pytester: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    pytester.makepyfile(GATED)
    run(pytester).assert_outcomes(passed=1)
    (call,) = asked
    assert (call["out"], call["baseline"]) == (pytester.path / "out", pytester.path / "gate.json")
    assert (call["samples"], call["update"], call["seed"]) == (8, False, None)


def test_a_failed_rule_fails_the_test_with_the_table(
    pytester: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    pytester.makepyfile("""
        def test_gate(assert_fidelity):
            assert_fidelity("out", "gate.json", rules={"psnr": {"min": 30}})
    """)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1 of 1 rules failed*", "*psnr | 27 | 28 | 30 | min 30*"])


def test_the_option_rewrites_baselines(pytester: pytest.Pytester, asked: list[dict[str, Any]]) -> None:
    pytester.makepyfile(GATED)
    run(pytester, "--ditpress-update").assert_outcomes(passed=1)
    assert asked[0]["update"] is True


def test_bad_input_is_an_error_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(GATED)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{InputError.__name__}*no such file; write it with --update*"])


def test_the_plugin_costs_no_torch(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_nothing():
            assert "torch" not in sys.modules
    """)
    result = pytester.runpytest_subprocess("-p", "no:ditpress", "-p", "ditpress.testing", "-p", "no:xdist")
    result.assert_outcomes(passed=1)


def test_the_project_declares_the_plugin() -> None:
    import tomllib

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (item,) = tomllib.loads(text)["project"]["entry-points"]["pytest11"].items()
    assert EntryPoint(*item, group="pytest11").load() is sys.modules["ditpress.testing"]
