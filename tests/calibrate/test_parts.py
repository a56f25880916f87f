"""Recorded calls cut into rows, and rows joined to calls."""

from __future__ import annotations

import pytest
import torch

from ditpress.calibrate.calls import Call
from ditpress.calibrate.parts import join_rows, split_calls
from ditpress.errors import InputError


def call() -> Call:
    return Call(
        7.0,
        {
            "hidden_states": torch.arange(10.0).view(5, 2),
            "timestep": torch.tensor(7),
            "class_labels": torch.arange(5),
            "img_ids": torch.arange(15).view(5, 3),  # five tokens, as many as rows by chance
            "added_cond_kwargs": {"resolution": torch.arange(5), "aspect_ratio": None},
            "guidance": [torch.arange(5.0), 3],
        },
    )


def test_pieces_together_are_the_call() -> None:
    parts = split_calls([call(), call()], 2)
    assert [len(part.kwargs["hidden_states"]) for part in parts] == [2, 2, 1, 2, 2, 1]
    whole = call().kwargs
    for name in ("hidden_states", "class_labels"):
        assert torch.equal(torch.cat([part.kwargs[name] for part in parts[:3]]), whole[name])
    resolutions = [part.kwargs["added_cond_kwargs"]["resolution"] for part in parts[:3]]
    assert torch.equal(torch.cat(resolutions), whole["added_cond_kwargs"]["resolution"])
    assert torch.equal(torch.cat([part.kwargs["guidance"][0] for part in parts[:3]]), whole["guidance"][0])
    for part in parts:
        assert part.timestep == 7.0
        assert torch.equal(part.kwargs["img_ids"], whole["img_ids"])
        assert torch.equal(part.kwargs["timestep"], whole["timestep"])
        assert part.kwargs["added_cond_kwargs"]["aspect_ratio"] is None


def test_what_cannot_be_cut() -> None:
    with pytest.raises(InputError, match="0 rows: expected at least 1"):
        split_calls([call()], 0)
    with pytest.raises(InputError, match="without hidden_states"):
        split_calls([Call(1.0, {"timestep": torch.tensor(1)})], 2)


def test_rows_of_several_calls_in_one() -> None:
    calls = [call(), call()]
    calls[1].kwargs["hidden_states"] = calls[1].kwargs["hidden_states"] + 100
    calls[1].kwargs["timestep"] = torch.tensor(3)
    joined = join_rows([(calls[0], 3), (calls[1], 0), (calls[1], 4)])
    assert joined["hidden_states"].tolist() == [[6.0, 7.0], [100.0, 101.0], [108.0, 109.0]]
    assert joined["timestep"].tolist() == [7, 3, 3]
    assert joined["class_labels"].tolist() == [3, 0, 4]
    assert torch.equal(joined["img_ids"], call().kwargs["img_ids"])
    assert joined["added_cond_kwargs"]["resolution"].tolist() == [3, 0, 4]
    assert joined["added_cond_kwargs"]["aspect_ratio"] is None
    assert joined["guidance"][0].tolist() == [3.0, 0.0, 4.0]
    assert joined["guidance"][1] == 3


def test_rows_of_calls_that_do_not_fit() -> None:
    other = call()
    other.kwargs["hidden_states"] = torch.zeros(5, 3)
    with pytest.raises(InputError, match="cannot share a batch"):
        join_rows([(call(), 0), (other, 0)])
    del other.kwargs["class_labels"]
    other.kwargs["hidden_states"] = torch.zeros(5, 2)
    with pytest.raises(InputError, match="class_labels"):
        join_rows([(call(), 0), (other, 0)])
