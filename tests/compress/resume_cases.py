"""Training that is killed and goes on where it was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ditpress.compress.distill.resume import FILE
from ditpress.load import Denoiser


class Killed(Exception):
    pass


def check_resumed(
    learn: Callable[[Path | None], tuple[Denoiser, Any]],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    steps: int,
    killed: int,
    saved: int,
) -> None:
    """Killed in step number ``killed`` (from 1) and begun again, training ends as if undisturbed.

    Args:
        learn: trains a fresh model for ``steps`` steps, with a folder to go on from or none; that model
            and what else it found.
        work: that folder.
        monkeypatch: of the test.
        saved: steps of which the state was saved when it was killed.
    """
    whole, expected = learn(None)
    step = torch.optim.AdamW.step
    taken = 0

    def fatal(self: torch.optim.AdamW, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == killed:
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", fatal)
    with pytest.raises(Killed):
        learn(work)
    assert (work / FILE).is_file()
    again, found = learn(work)
    assert taken == killed + steps - saved
    assert found == expected  # probabilities and losses, float by float
    state, resumed = whole.transformer.state_dict(), again.transformer.state_dict()
    assert set(state) == set(resumed)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in state.items())
