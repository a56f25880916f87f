"""Every statistic against the same figure on all inputs at once, in float64."""

from __future__ import annotations

import pytest
import torch
from tiny_dit import tiny_dit, tiny_pipeline
from torch import Tensor

from ditpress.calibrate import STATISTICS, Calibration, Want, record_calls
from ditpress.calibrate.statistics import (
    MOST_ROWS,
    InputMax,
    InputMin,
    InputRows,
    InputSecondMoment,
)
from ditpress.errors import InputError
from ditpress.load import load_denoiser


def batches(count: int, rows: int, channels: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, rows, channels, generator=generator) - 0.3 for _ in range(count)]


def test_min_and_max_are_those_of_all_inputs() -> None:
    inputs = batches(4, 5, 6)
    low, high = InputMin(), InputMax()
    for x in inputs:
        low.update(x.clone())
        high.update(x)
    everything = torch.cat([x.flatten(0, 1) for x in inputs])
    assert torch.equal(low.result(), everything.amin(0))
    assert torch.equal(high.result(), everything.amax(0))


def test_second_moment_is_the_mean_of_products_whatever_the_batches() -> None:
    inputs = [*batches(3, 7, 5), *batches(2, 40, 5, seed=1), torch.zeros(0, 5)]
    statistic = InputSecondMoment()
    for x in inputs:
        statistic.update(x)
    rows = torch.cat([x.reshape(-1, 5) for x in inputs]).double()
    expected = rows.T @ rows / rows.shape[0]
    assert statistic.result().dtype == torch.float32
    torch.testing.assert_close(statistic.result().double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("updates", "rows", "expected"),
    # all rows fit | as many of each | one of each | every second update, as soon as there are too many
    [(3, 4, 24), (10, 300, 1020), (MOST_ROWS, 2, MOST_ROWS), (MOST_ROWS + 1, 2, MOST_ROWS // 2 + 1)],
)
def test_rows_come_evenly_from_every_update(updates: int, rows: int, expected: int) -> None:
    statistics = [InputRows(), InputRows()]
    for statistic in statistics:
        for update in range(updates):
            place = torch.arange(2 * rows).reshape(2, rows)
            statistic.update(torch.stack([torch.full_like(place, update), place], dim=-1).float())
    found = statistics[0].result()
    assert found.shape == (expected, 2)
    assert torch.equal(found, statistics[1].result())
    assert found.unique(dim=0).shape == found.shape  # no row twice
    counts = found[:, 0].unique(return_counts=True)[1]
    assert int(counts.max() - counts.min()) == 0
    # drawn from everywhere: the mean place is that of a uniform sample, within six standard deviations
    middle, deviation = (2 * rows - 1) / 2, 2 * rows / 12**0.5
    assert abs(float(found[:, 1].mean()) - middle) < 6 * deviation / expected**0.5 + 1e-6


def test_rows_are_copies_of_rows_that_were_read() -> None:
    statistic = InputRows()
    x = torch.arange(12.0).reshape(2, 2, 3)
    rows = {tuple(row) for row in x.reshape(-1, 3).tolist()}
    statistic.update(x)
    x.zero_()
    assert {tuple(row) for row in statistic.result().tolist()} == rows


def test_parts_hold_at_most_the_limit_and_give_what_one_pass_gives() -> None:
    denoiser = load_denoiser(tiny_pipeline())
    calibration = Calibration(record_calls(denoiser, samples=1, steps=2, guidance=1.0, seed=0))
    model = denoiser.transformer
    layers = [f"transformer_blocks.{i}.ff.net.{n}" for i in range(2) for n in ("0.proj", "2")]
    wants = [Want(name, statistic) for statistic in STATISTICS for name in layers]
    together = calibration.collect(model, wants)
    limit = 150_000  # MOST_ROWS rows of 16 channels and then of 64 need 131 and 524 kB
    parts = list(calibration.collect_in_parts(model, wants, limit))
    assert [sorted({want.layer for want in part}) for part in parts] == [[name] for name in layers]
    assert len(list(calibration.collect_in_parts(model, wants, 1 << 40))) == 1
    merged = {want: value for part in parts for want, value in part.items()}
    assert merged.keys() == together.keys()
    for want, value in together.items():
        assert torch.equal(merged[want], value), want


def test_what_a_statistic_holds_is_what_it_says() -> None:
    for cls in STATISTICS.values():
        statistic = cls()
        for x in batches(3, 600, 16):
            statistic.update(x)
        assert 4 * statistic.result().numel() <= cls.bytes_for(16)


def test_a_layer_of_a_part_must_exist() -> None:
    with pytest.raises(InputError, match="nowhere: no such layer"):
        list(Calibration([]).collect_in_parts(tiny_dit(), [Want("nowhere", "input_min")], 1))
