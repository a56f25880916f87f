"""Rules, baselines and verdicts, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ditpress.errors import InputError
from ditpress.validate.gate.baseline import Baseline, load_baseline
from ditpress.validate.gate.compare import compare, judge, require_enough, require_like
from ditpress.validate.gate.figures import Figure, Figures, Settings
from ditpress.validate.gate.outputs import to_data, to_junit, to_markdown
from ditpress.validate.gate.rules import DEFAULTS, METRICS, Rule, parse_amount, parse_rules

SETTINGS: dict[str, Any] = {
    "model": "zoo:mnist-dit",
    "fingerprint": "a" * 64,
    "against": None,
    "samples": 80,
    "call_samples": 8,
    "steps": 8,
    "guidance": 1.5,
    "seed": 0,
    "scheduler": "DDIMScheduler",
    "scheduler_sha256": "b" * 64,
    "extractor": "mnist-clip",
    "extractor_sha256": "c" * 64,
    "num_features": 64,
    "inception_sha256": None,
    "lpips_sha256": None,
    "reference": "mnist-test",
    "reference_sha256": "d" * 64,
}


def baseline(rules: dict[str, Any], **metrics: tuple[float, float | None]) -> Baseline:
    return Baseline(
        schema=1,
        recipe="w4a8",
        settings=Settings(**SETTINGS),
        versions={"torch": "2.13.0"},
        figures=Figures(
            metrics={name: Figure(value=value, error=error) for name, (value, error) in metrics.items()},
            tables={"layer_sqnr_db": table(a=30.0, b=35.0)},
        ),
        rules=rules,
    )


def table(**values: float) -> dict[str, Figure]:
    return {name: Figure(value=value) for name, value in values.items()}


def figures(**values: float) -> Figures:
    return Figures(metrics={name: Figure(value=value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("text", "of_200"),
    [("2%", 4.0), ("0.01", 0.01), (0.5, 0.5), (3, 3.0), ("300MB", 300e6), ("1.5 GB", 1.5e9), ("1e-3", 1e-3)],
)
def test_amounts(text: object, of_200: float) -> None:
    assert parse_amount(text).of(200.0) == pytest.approx(of_200)


@pytest.mark.parametrize("text", ["", "two", "-1", "5 %%", "1e999", True, None, "nan", "--1"])
def test_what_is_no_amount(text: object) -> None:
    with pytest.raises(InputError, match="no amount"):
        parse_amount(text)


@pytest.mark.parametrize(
    ("rule", "value", "passed"),
    [
        ({"max_increase": "2%"}, 10.2, True),
        ({"max_increase": "2%"}, 10.21, False),
        ({"max_increase": 0.3}, 10.31, False),
        ({"max_drop": 0.01}, 9.99, True),
        ({"max_drop": 0.01}, 9.98, False),
        ({"max_drop": "10%"}, 8.9, False),
        ({"max_drop": "10%"}, 50.0, True),  # better is never a failure
        ({"max_ratio": 1.1}, 11.0, True),
        ({"max_ratio": 1.1}, 11.01, False),
        ({"min": 24}, 23.9, False),
        ({"min": 24}, 24.0, True),
        ({"max": "300MB"}, 300e6, True),
        ({"max": "300MB"}, 300e6 + 1, False),
        ({"min": 1, "max": 9}, 10.0, False),
        ({"min": 1, "max": 9}, 0.5, False),
        ({"min": 1, "max": 9}, 5.0, True),
    ],
)
def test_bounds_without_noise(rule: dict[str, Any], value: float, passed: bool) -> None:
    verdict = judge("fid", Rule(**rule), Figure(value=value), Figure(value=10.0))
    assert verdict.passed == passed
    assert verdict.margin == 0


def test_noise_widens_a_bound_by_the_error_of_the_difference() -> None:
    before = Figure(value=10.0, error=0.3)
    verdict = judge("fid", Rule(max_increase=1, noise=2), Figure(value=11.9, error=0.4), before)
    assert verdict.margin == pytest.approx(2 * 0.5)  # 0.3 and 0.4 make 0.5
    assert verdict.limit == pytest.approx(12.0)
    assert verdict.passed
    assert not judge("fid", Rule(max_increase=1, noise=2), Figure(value=12.1, error=0.4), before).passed
    absolute = judge("psnr", Rule(min=24, noise=2), Figure(value=23.3, error=0.4), before)
    assert absolute.limit == pytest.approx(23.2)  # of the figure alone
    assert absolute.passed


def test_figures_on_the_same_calls_differ_without_noise() -> None:
    before, now = Figure(value=30.0, error=2.0), Figure(value=28.9, error=2.0)
    for metric in ("output_sqnr_db", "timestep_sqnr_db", "layer_sqnr_db"):
        verdict = judge(metric, Rule(max_drop=1), now, before)
        assert not verdict.passed
        assert (verdict.limit, verdict.margin) == (29.0, 0.0)
        assert judge(metric, Rule(min=34), now, before).passed  # one figure alone has its noise
    assert judge("psnr", Rule(max_drop=1), now, before).passed  # of images, which other seeds change


def test_rules_of_a_table_hold_for_every_entry_and_name_the_worst() -> None:
    now = Figures(tables={"layer_sqnr_db": table(a=28.0, b=25.0)})
    (verdict,) = compare(now, baseline({"layer_sqnr_db": {"max_drop": 0.5}}))
    assert not verdict.passed
    assert verdict.name == "layer_sqnr_db [b]"
    assert (verdict.value, verdict.baseline, verdict.limit) == (25.0, 35.0, 34.5)
    fine = Figures(tables={"layer_sqnr_db": table(a=29.6, b=40.0)})
    assert compare(fine, baseline({"layer_sqnr_db": {"max_drop": 0.5}}))[0].passed


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"fdi": {"min": 1}}, 'rules has no metric "fdi"; did you mean "fid"'),
        ({"fid": {"max_increse": "2%"}}, 'rules.fid has no field "max_increse"; did you mean "max_increase"'),
        ({"fid": {}}, "a rule without a bound"),
        ({"fid": {"noise": 3}}, "a rule without a bound"),
        ({"fid": {"max_increase": "much"}}, "'much' is no amount"),
        ({"bytes": {"max": "2%"}}, "a part of nothing"),
        ({"fid": {"min": 1, "noise": -1}}, "rules.fid.noise"),
        ({}, "expected metrics with their rules"),
        ([], "expected metrics with their rules"),
    ],
)
def test_bad_rules_are_named(rules: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_rules(rules, "rules")
    assert message in str(caught.value)


def test_the_usual_rules_are_rules_of_known_metrics() -> None:
    assert set(parse_rules(DEFAULTS, "rules")) <= set(METRICS)


def test_a_baseline_survives_its_file_sorted_and_short(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    written = baseline(
        {"psnr": {"min": 24}, "fid": {"max_increase": "2%"}}, fid=(1 / 3, 0.125), psnr=(27.5, None)
    )
    written.save(path)
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert '"value": 0.333333\n' in text
    read = load_baseline(path)
    assert read.settings == written.settings
    assert read.figures.metrics["fid"] == Figure(value=0.333333, error=0.125)
    assert read.figures.metrics["psnr"].error is None
    assert list(read.parsed_rules()) == ["fid", "psnr"]
    assert read.to_json() == text


def broken(text: str, how: str) -> str:
    data = json.loads(text)
    if how == "truncated":
        return text[: len(text) // 2]
    if how == "merge":
        return text.replace('"schema": 1', '"schema": 1, "schema": 1')
    if how == "conflict":
        return "<<<<<<< ours\n" + text
    if how == "list":
        return "[]"
    if how == "schema":
        data["schema"] = 2
    if how == "missing":
        del data["settings"]["samples"]
    if how == "unknown":
        data["settings"]["sampels"] = 3
    if how == "type":
        data["figures"]["metrics"]["fid"]["value"] = "low"
    if how == "nan":
        return text.replace('"value": 1.25', '"value": NaN')
    if how == "rule":
        data["rules"]["fid"] = {"max_increase": "a bit"}
    return json.dumps(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "not readable as JSON"),
        ("conflict", "not readable as JSON"),
        ("merge", "'schema' is there twice"),
        ("list", "expected the object of a baseline"),
        ("schema", "reads schema 1"),
        ("missing", "settings.samples is missing"),
        ("unknown", 'settings has no field "sampels"; did you mean "samples"'),
        ("type", "figures.metrics.fid.value"),
        ("nan", "figures.metrics.fid.value"),
        ("rule", "'a bit' is no amount"),
    ],
)
def test_broken_baselines_are_input_errors(tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "gate.json"
    path.write_text(broken(baseline({"fid": {"max_increase": "2%"}}, fid=(1.25, None)).to_json(), how))
    with pytest.raises(InputError) as caught:
        load_baseline(path)
    assert message in str(caught.value)
    assert "gate.json" in str(caught.value)


def test_a_missing_baseline_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; write it with --update"):
        load_baseline(tmp_path / "gate.json")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("samples", 81, "samples 80 there, 81 here; measure with the baseline's settings (--samples)"),
        ("steps", 4, "steps 8 there, 4 here"),
        ("guidance", 4.0, "guidance 1.5 there, 4.0 here"),
        ("fingerprint", "e" * 64, "fingerprint aaaaaaaaaaaa there, eeeeeeeeeeee here; check the model"),
        ("extractor_sha256", "e" * 64, "extractor_sha256 cccccccccccc there"),
        ("reference_sha256", None, "reference_sha256 dddddddddddd there, None here"),
        ("scheduler_sha256", "e" * 64, "scheduler_sha256"),
        ("scheduler", "EulerDiscreteScheduler", "scheduler DDIMScheduler there, EulerDiscreteScheduler here"),
        ("inception_sha256", "e" * 64, "inception_sha256 None there"),
        ("lpips_sha256", "e" * 64, "measure with the baseline's settings (--lpips)"),
        ("call_samples", 4, "call_samples 8 there, 4 here"),
    ],
)
def test_unlike_settings_are_refused_by_name(name: str, value: object, message: str) -> None:
    now = Settings(**{**SETTINGS, name: value})
    with pytest.raises(InputError) as caught:
        require_like(now, Settings(**SETTINGS), "gate.json")
    assert message in str(caught.value)


def test_another_seed_or_place_of_the_model_is_no_other_setting() -> None:
    moved = Settings(**{**SETTINGS, "seed": 7, "model": "copy/of/it"})
    assert moved != Settings(**SETTINGS)
    require_like(moved, Settings(**SETTINGS), "gate.json")  # raises where they are unlike


def test_too_few_samples_for_the_covariance_say_the_minimum() -> None:
    few = Settings(**{**SETTINGS, "samples": 64})
    with pytest.raises(InputError, match=r"64 samples give a singular covariance .* at least 65"):
        require_enough(few, {"fid": 1, "psnr": 1})
    require_enough(few, {"psnr": 1, "kid": 1})
    require_enough(Settings(**{**SETTINGS, "samples": 65}), {"fid": 1})


def test_rules_without_a_figure_are_refused() -> None:
    with pytest.raises(InputError, match="rule fid: was not measured"):
        compare(figures(psnr=30.0), baseline({"fid": {"max": 3}}))
    with pytest.raises(InputError, match="the baseline has no such figure; add it with --update"):
        compare(figures(fid=30.0), baseline({"fid": {"max_increase": "2%"}}))
    with pytest.raises(InputError, match="it needs the stages/"):
        compare(figures(), baseline({"layer_sqnr_db": {"max_drop": 1}}))
    other = Figures(tables={"layer_sqnr_db": table(a=30.0, c=35.0)})
    with pytest.raises(InputError, match="another compression"):
        compare(other, baseline({"layer_sqnr_db": {"max_drop": 1}}))
    timed = Figures(metrics={"onnx_ms": Figure(value=3.0)}, hardware="another processor")
    with pytest.raises(InputError, match="timed on None there, on another processor here"):
        compare(timed, baseline({"onnx_ms": {"max_ratio": 1.1}}, onnx_ms=(3.0, None)))


def test_outputs_name_what_failed() -> None:
    rules = {"fid": {"max_increase": "2%"}, "psnr": {"min": 24}}
    verdicts = compare(figures(fid=11.0, psnr=30.0), baseline(rules, fid=(10.0, None), psnr=(30.0, None)))
    suites = ElementTree.fromstring(to_junit(verdicts, "check <out>"))
    assert (suites.get("tests"), suites.get("failures")) == ("2", "1")
    cases = {case.get("name"): case.find("failure") for case in suites.iter("testcase")}
    assert set(cases) == {"fid: max_increase 2%", "psnr: min 24.0"}
    failure = cases["fid: max_increase 2%"]
    assert failure is not None
    assert failure.get("message") == "fid 11 is above 10.2"
    assert cases["psnr: min 24.0"] is None
    text = to_markdown(verdicts, "check out|a")
    assert text.startswith("### check out\\|a: 1 of 2 rules failed\n")
    rows = [line for line in text.splitlines() if line.startswith(("| ❌", "| ✅"))]
    assert rows == [
        "| ❌ | fid | 11 | 10 | 10.2 | max_increase 2% |",
        "| ✅ | psnr | 30 | 30 | 24 | min 24.0 |",
    ]
    data = to_data(verdicts)
    assert data["passed"] is False
    assert [rule["passed"] for rule in data["rules"]] == [False, True]
