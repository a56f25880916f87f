"""Checks and tables of the pruning benchmark, from results that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pruning.bounds import checks
from pruning.results import Results, over_seeds
from pruning.rows import ROWS
from pruning.tables import HEAD, SEEDS_HEAD, SUMMARY_HEAD, report, summary

CONDITIONS = {"model": "zoo:mnist-dit", "samples": 500, "cpu": "A Processor", "threads": 1, "versions": {}}


def entry(fid: float, db: float | None, share: float = 0.98, speedup: float = 1.9, **more: Any) -> Any:
    scores = {"fid": fid, "kid": 0.001, "clip": 30.0, "fid_to_original": 0.5, "kid_to_original": 0.0}
    return {
        "engine": "onnx",
        "parameters": 2_000_000,
        "bytes": 8_000_000,
        "effective_bits": 16.0,
        "file_bytes": 8_100_000,
        "seconds": 100.0,
        "peak_rss_bytes": 700_000_000,
        "recognised": share,
        "kept_blocks": {},
        "speed": {"speedup": speedup},
        "code": "0",
        "fidelity": {"compressed": scores, "paired": {"psnr": 20.0, "output_sqnr_db": db}},
        **more,
    }


def results(**entries: Any) -> Results:
    original = entry(1.8, None, 0.994, 1.0, parameters=3_000_000, fids=[1.8])
    return Results(CONDITIONS, {"original": original, **{k.replace("_", "-"): v for k, v in entries.items()}})


def verdicts(found: Results, text: str) -> list[Any]:
    return [check.holds for check in checks(found) if text in check.text]


@pytest.mark.parametrize(
    ("speedup", "share", "holds"), [(1.8, 0.974, [True, True]), (1.79, 0.973, [False, False])]
)
def test_half_of_the_blocks(speedup, share, holds):
    found = results(prune_depth=entry(2.0, 15.0, share, speedup))
    assert verdicts(found, "prune-depth: ") == holds


@pytest.mark.parametrize(("file", "speedup", "holds"), [(1_000_000, 3.5, True), (1_000_001, 3.49, False)])
def test_tiny(file, speedup, holds):
    found = results(tiny=entry(2.0, 15.0, 0.98, speedup, file_bytes=file))
    assert verdicts(found, "tiny: ") == [holds, holds]


def test_means_over_seeds_decide_and_only_over_all_of_them():
    learned = {f"depth_learned_{seed}": entry(2.0, 15.0 + seed) for seed in range(3)}
    output = {f"depth_output_{seed}": entry(1.9 + 0.1 * seed, 15.5) for seed in range(3)}
    found = results(**learned, **output)
    assert verdicts(found, "those of output") == [True, False]  # 16 dB over 15.5; FIDs of 2.0 are equal
    (said,) = (check.measured for check in checks(found) if "SQNR than those of output" in check.text)
    assert said == "16.00 ± 1.00 dB against 15.50 dB"
    assert verdicts(found, "those of similarity") == [None, None]
    del found.entries["depth-output-2"]
    assert verdicts(found, "those of output") == [None, None]
    seeds = over_seeds(found, "depth-output")
    assert seeds is not None
    assert (seeds.count, seeds.wanted) == (2, 3)
    assert seeds.fid.value == pytest.approx(1.95)
    assert seeds.fid.deviation == pytest.approx(0.1 / 2**0.5)


def test_units_against_random_and_magnitude():
    figures = {"random": entry(3.0, 10.0), "taylor": entry(2.0, 14.0), "magnitude": entry(1.5, 12.0)}
    found = results(**{f"width_{by}_{seed}": one for by, one in figures.items() for seed in range(3)})
    assert verdicts(found, "units by taylor") == [True, True, True, False]
    assert verdicts(found, "units by hessian") == [None] * 4


def test_distillation_against_fine_tuning():
    found = results(depth_learned_0=entry(2.0, 15.0), depth_fine_tuned=entry(1.9, 9.0))
    assert verdicts(found, "than fine-tuning") == [True, False]


def test_every_check_on_nothing():
    found = checks(Results(CONDITIONS))
    assert len({check.text for check in found}) == len(found)
    assert all(check.holds is None for check in found)


def test_the_report():
    kept = {"transformer_blocks": [0, 2, 5]}
    found = results(depth_learned_0=entry(2.0, 15.0, kept_blocks=kept), tiny=entry(2.1, 14.0))
    found.missing["small"] = "StageError: the disk is full"
    lines = report(found)
    scores = "2.000 | 0.500 | 1.000 | 98.0% | 20.00 dB | 15.00 dB"
    figures = f"2.00 M | 16.00 | 8.10 MB | {scores} | 1.90 | 100.0 | 0.70 GB"
    assert f"| blocks: learned, seed 0 (0, 2, 5) | {figures} |" in lines
    original = "| original | 3.00 M | 16.00 | 8.10 MB | 1.800 |  | 1.000 | 99.4% |  |  | 1.00 |  |  |"
    assert original in lines
    assert {line.count("|") for line in lines if line.startswith(("| tiny |", "| original |"))} == {
        HEAD[0].count("|")
    }
    assert "| depth-learned | 1 of 3 | 15.00 dB | 2.000 | 98.0% |" in lines
    assert SEEDS_HEAD[0].count("|") == "| depth-learned | 1 of 3 | 15.00 dB | 2.000 | 98.0% |".count("|")
    assert "- small: StageError: the disk is full" in lines
    left = next(line for line in lines if line.startswith("- yet: "))
    measured = {"original", "tiny", "depth-learned-0", "small"}
    assert left == "- yet: " + ", ".join(row.name for row in ROWS if row.name not in measured)
    assert "`distill.training.steps=" in lines[-1]


def test_the_summary_has_the_recipes_alone():
    tiny = entry(2.1, 14.0, speedup=3.9, file_bytes=1_000_000)
    head, ruler, *lines = summary(results(tiny=tiny, depth_learned_0=entry(2.0, 15.0)))
    assert (head, ruler) == SUMMARY_HEAD
    assert lines[0] == "| original | 8.10 MB |  |  | 1.80 | 99.4% |  |"
    assert lines[1] == "| tiny | 1.00 MB | 12.0 | 3.90 | 2.10 | 98.0% | 14.00 dB |"
    assert {line.count("|") for line in lines[:2]} == {head.count("|")}
    assert lines[2] == ""
