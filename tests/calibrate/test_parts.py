"""Recorded calls cut into rows."""

from __future__ import annotations

import pytest
import torch

from ditpress.calibrate.calls import Call
from ditpress.calibrate.parts import split_calls
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
