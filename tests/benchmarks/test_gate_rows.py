"""The gate's benchmark: what its plants do to a layer, and that its verdict on the gate can be bad."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack
from gate.measure import FAILED, PASSED, REFUSED, Entry, holds
from gate.plants import Damage, scales_off, swapped_channels, two_bits
from gate.rows import EVERYWHERE, PLANTS, SEEDS
from gate.tables import failures, report


def layer(format: str = "int4", entries: int = 16) -> QuantizedLinear:
    """Twelve inputs, six outputs, random codes, one scale per channel."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(entries, (6, 12), generator=generator).to(torch.uint8)
    scale = 0.01 + torch.rand(6, 1, generator=generator)
    return QuantizedLinear(pack(codes, entries), scale, format, 12, bias=torch.arange(6.0))


def damaged(damage: Damage, format: str = "int4", entries: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights before and after."""
    one = layer(format, entries)
    before = one.dequantize().clone()
    damage(one)
    return before, one.dequantize()


def test_scales_are_off_by_five_percent() -> None:
    before, after = damaged(scales_off)
    torch.testing.assert_close(after, 1.05 * before)


@pytest.mark.parametrize(("format", "entries"), [("int4", 16), ("int8", 256)])
def test_two_bits_leave_four_values_and_take_the_nearest(format: str, entries: int) -> None:
    before, after = damaged(two_bits, format, entries)
    plain = layer(format, entries)
    values = plain.codebook.flatten().double()
    kept = [
        float(values[(values - part * values.abs().max()).abs().argmin()]) for part in (-1, -1 / 3, 1 / 3, 1)
    ]
    assert len(set(kept)) == 4
    for row, coarse, scale in zip(before, after, plain.scale, strict=True):
        levels = scale * torch.tensor(kept)
        assert len(coarse.unique()) <= 4
        assert len(row.unique()) > 4
        torch.testing.assert_close((row - coarse).abs(), (row[:, None] - levels).abs().min(1).values)


def test_the_first_two_channels_change_places() -> None:
    before, after = damaged(swapped_channels)
    assert torch.equal(after[[1, 0, 2, 3, 4, 5]], before)
    assert not torch.equal(after, before)


def verdict(
    metric: str, passed: bool = True, entry: str | None = None, value: float = 20.0
) -> dict[str, Any]:
    return {
        **{"metric": metric, "entry": entry, "rule": "max_drop 0.5", "value": value},
        **{"baseline": 30.0, "limit": 29.5, "passed": passed},
    }


def results() -> dict[str, Any]:
    """A gate that does its work."""
    entries: dict[str, Entry] = {}
    for plant in PLANTS:
        if plant.rules:
            found = [verdict(rule, False, "a.b") for rule in plant.rules]
            entries[plant.name] = {"outcome": FAILED, "verdicts": [*found, verdict("fid")]}
        else:
            reason = f"baseline x: figures cannot be compared: {plant.setting} 1 there, 2 here; measure"
            entries[plant.name] = {"outcome": REFUSED, "reason": reason}
    for text in EVERYWHERE:
        all_layers = [verdict("layer_sqnr_db", False, name, 20.0 + len(name)) for name in ("a.b", "a.bc")]
        entries[text] = {"layers": 2, "caught": 2, "missed": [], "verdicts": all_layers}
    for seed in SEEDS:
        figures = [verdict("fid", value=29.6 + 0.1 * seed)]
        entries[f"seed {seed}"] = {"outcome": PASSED, "verdicts": figures}
    conditions = {"model": "zoo:x", "recipe": "w4a8", "samples": 8, "steps": 2}
    return {"conditions": conditions, "cpu": "a processor", "entries": entries}


def test_a_gate_that_works_has_no_failures_and_a_table() -> None:
    data = results()
    assert failures(data) == []
    text = "\n".join(report(data))
    assert "| refused | scheduler_sha256 1 there, 2 here |" in text
    assert "| failed | `parity_margin_db` of a.b 20, limit 29.5 |" in text
    assert "| two channels swapped | 2 of 2 layers | 6.0 dB, a.bc | max_drop 0.5 |" in text
    assert "| `fid` max_drop 0.5 | 30 | 29.7 … 30.6 | 29.5 | 10 of 10 |" in text
    assert "`w4a8` of `zoo:x`, 8 samples, 2 steps" in text


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_what_the_gate_lets_through_is_a_failure(plant: Any) -> None:
    missed: Entry = {"outcome": PASSED, "verdicts": [verdict("layer_sqnr_db"), verdict("parity_margin_db")]}
    wrong: Entry = {"outcome": FAILED, "verdicts": [verdict("bytes", False)]}
    other: Entry = {"outcome": REFUSED, "reason": "baseline x: figures cannot be compared: model 1 there"}
    for entry in (missed, wrong, other):
        assert not holds(plant, entry)
        data = results()
        data["entries"][plant.name] = entry
        assert failures(data) == [f"{plant.name} not caught"]
        assert f"**{entry['outcome']}**" in "\n".join(report(data))


def test_a_missed_layer_and_a_failed_seed_are_failures() -> None:
    data = results()
    data["entries"]["2 bits"]["missed"] = ["a.b"]
    data["entries"]["seed 3"] = {"outcome": FAILED, "verdicts": [verdict("fid", False)]}
    found = failures(data)
    assert found == ["2 bits: a.b not caught", "seed 3 failed: `fid` 20, limit 29.5"]
