"""The table of a model of real size, from reports that can be worked out by hand."""

from __future__ import annotations

import pytest

from ditpress.validate.report import Environment, Report, Size, StageRecord
from large import RECIPES, checks, table


def report(*stages: tuple[float, int], threads: int = 1) -> Report:
    size = Size.model_construct(
        parameters=1_000_000_000,
        original_bytes=4_000_000_000,
        compressed_bytes=600_000_000,
        onnx_bytes=620_000_000,
        effective_bits=4.8,
    )
    records = [
        StageRecord(name=str(index), seconds=seconds, peak_rss_bytes=memory)
        for index, (seconds, memory) in enumerate(stages)
    ]
    here = Environment.model_construct(cpu="A Processor", threads=threads)
    return Report.model_construct(size=size, stages=records, environment=here)


def test_time_is_the_sum_and_memory_the_most_of_all_stages():
    lines = table({"w4a8": report((60.0, 7_000_000_000), (90.0, 9_000_000_000), (30.0, 8_000_000_000))})
    assert lines[2:4] == [
        "| original | 4.00 GB | | 32 | | |",
        "| w4a8 | 0.60 GB | 0.62 GB | 4.80 | 3 | 9.0 GB |",
    ]
    assert lines[-1].endswith("A Processor, 1 thread.")


def test_settings_of_one_recipe_are_said_where_it_is_measured():
    both = {name: report((1.0, 1), threads=2) for name in RECIPES}
    assert "vq: `vq.blocks.steps=8`" in table(both)[-1]
    assert "vq" not in table({"w4a8": both["w4a8"]})[-1]
    assert table(both)[-1].endswith("2 threads.")


@pytest.mark.parametrize(("memory", "holds"), [(12_000_000_000, True), (12_000_000_001, False)])
def test_twelve_gigabytes(memory: int, holds: bool):
    (check,) = checks({"vq": report((1.0, 5), (1.0, memory))})
    assert check.holds is holds
