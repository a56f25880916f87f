"""Checks and tables of the fidelity benchmark, from results that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from comparison.checks import fid_noise
from fidelity.bounds import checks, rivals
from fidelity.results import Results
from fidelity.rows import ROWS
from fidelity.tables import ABLATION_HEAD, HEAD, SUMMARY_HEAD, report, summary

CONDITIONS = {
    "model": "zoo:mnist-dit",
    "samples": 1000,
    "cpu": "A Processor",
    "threads": 2,
    "versions": {"torch": "2.0"},
}


def entry(bits: float, fid: float, db: float | None, recognised: float | None = None, **more: Any) -> Any:
    scores = {"fid": fid, "kid": 0.001, "clip": 30.0, "fid_to_original": 0.5, "kid_to_original": 0.0}
    return {
        "engine": "onnx",
        "bytes": 2_000_000,
        "effective_bits": bits,
        "file_bytes": 2_100_000,
        "seconds": 1.5,
        "peak_rss_bytes": 700_000_000,
        "recognised": recognised,
        "code": "0",
        "fidelity": {"compressed": scores, "paired": {"psnr": 25.0, "output_sqnr_db": db}},
        **more,
    }


def results(**entries: Any) -> Results:
    original = entry(16.0, 10.0, None, 0.95, fids=[10.0, 10.4, 9.6, 10.2, 9.8])
    return Results(CONDITIONS, {"original": original, **{k.replace("_", "-"): v for k, v in entries.items()}})


def verdicts(found: Results, text: str) -> dict[str, Any]:
    return {check.text: check.holds for check in checks(found) if text in check.text}


def test_above_plain_rounding():
    found = results(
        w4a8=entry(5, 10, 22.0),
        rtn_w4a8=entry(5, 11, 20.0),
        ternary=entry(2.5, 12, 15.0),
        rtn_ternary=entry(2.5, 99, 11.5),
        w8a8=entry(9, 10, 40.0),
    )
    over = verdicts(found, "plain RTN")
    assert over["w4a8: output SQNR above plain RTN at its bits by 2 dB"] is True
    assert over["ternary: output SQNR above plain RTN at its bits by 4 dB"] is False
    assert over["w8a8: output SQNR above plain RTN at its bits by 2 dB"] is None


def test_rivals_are_those_of_its_bits_or_of_less_storage():
    found = results(
        w4a8=entry(5.6, 10, 30.0),
        ort_rtn_64=entry(4.9, 9.8, 28.0),  # nearer by less than the noise of 0.32
        ort_hqq_64=entry(6.1, 9.6, 29.0),  # stores more, but has four bits too
        torchao_int8=entry(9.0, 10.0, 50.0),
    )
    names = {row.name for row, _ in rivals(found, next(row for row in ROWS if row.name == "w4a8"))}
    assert names == {"ort-rtn-64", "ort-hqq-64"}
    unbeaten = verdicts(found, "w4a8: no baseline")
    assert unbeaten["w4a8: no baseline of its bits or fewer has a better FID"] is False
    assert unbeaten["w4a8: no baseline of its bits or fewer has a better output SQNR"] is True
    (said,) = (check.measured for check in checks(found) if "better FID" in check.text and check.measured)
    assert said == "beaten by ONNX Runtime MatMulNBits HQQ, block 64"


@pytest.mark.parametrize(("fid", "holds"), [(10.2, True), (10.31, True), (10.33, False)])
def test_the_fid_of_w4a8(fid, holds):
    found = results(w4a8=entry(5, fid, 30.0))
    noise = 0.1**0.5  # of 10 ± 0, 0.4, 0.4, 0.2, 0.2: sqrt(0.4 / 4)
    assert fid_noise(found.get("original")) == pytest.approx(noise)
    (verdict,) = verdicts(found, "FID at most 2 %").values()
    assert verdict is holds


@pytest.mark.parametrize(("share", "holds"), [(0.93, True), (0.91, False), (None, None)])
def test_the_recognised_share(share, holds):
    found = results(ternary=entry(2.5, 12, 15.0, share))
    assert verdicts(found, "ternary: recognised") == {
        "ternary: recognised share at most 3 points below the original's": holds
    }


def test_every_check_on_nothing():
    assert all(check.holds is None for check in checks(Results(CONDITIONS)))


def test_the_report():
    found = results(
        w4a8=entry(5.5, 10.1, 30.0, 0.94),
        w4a8_without_smoothing=entry(5.5, 10.5, 27.0),
        bnb_nf4=entry(5.25, 10.2, 29.0, file_bytes=None),
    )
    found.missing["fp4"] = "no recipe fp4 yet"
    lines = report(found)
    figures = "5.50 | 2.10 MB | 10.100 | 0.500 | 1.000 | 30.00 | 94.0% | 25.00 dB | 30.00 dB | 1.5 | 0.70 GB"
    assert f"| w4a8 | {figures} |" in lines
    assert "| original | 16.00 | 2.10 MB | 10.000 |  | 1.000 | 30.00 | 95.0% |  |  |  |  |" in lines
    assert any(line.startswith("| bitsandbytes NF4, block 64 | 5.25 | 2.00 MB † |") for line in lines)
    ablations = lines[lines.index("### Without one of its parts") :]
    assert ablations[4:6] == [
        "| w4a8 | 5.50 | 2.10 MB | 10.100 | 0.500 | 25.00 dB | 30.00 dB | 1.5 | 0.70 GB |",
        "| w4a8: without smoothing | 5.50 | 2.10 MB | 10.500 | 0.500 | 25.00 dB | 27.00 dB | 1.5 | 0.70 GB |",
    ]
    assert "- fp4: no recipe fp4 yet" in lines
    assert "### Plain rounding at the same bits" not in lines
    heads = {line.count("|") for line in (HEAD[0], ABLATION_HEAD[0])}
    assert {line.count("|") for line in lines if line.startswith("| w4a8 |")} == heads
    assert lines[-1].startswith("`zoo:mnist-dit`, 1000 images, no guidance")


def test_the_summary_has_the_recipes_alone():
    found = results(
        w4a8=entry(5.5, 10.1, 30.0, 0.94), rtn_w4a8=entry(5.5, 12.0, 20.0), bnb_nf4=entry(5.25, 10.2, 29.0)
    )
    lines = summary(found)
    assert lines[:4] == [
        *SUMMARY_HEAD,
        "| original | 16.00 | 2.10 MB | 10.00 | 95.0% |  |  |",
        "| w4a8 | 5.50 | 2.10 MB | 10.10 | 94.0% | 25.00 dB | 30.00 dB |",
    ]
    assert lines[4] == ""
    assert lines[5].startswith("`zoo:mnist-dit`, 1000 images")
    assert len(lines) == 6
