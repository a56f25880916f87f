"""What a training step sees: rows of recorded calls, mixed over the timesteps."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny_dit import tiny_pipeline
from torch import Tensor

from ditpress.calibrate.calls import Call
from ditpress.calibrate.parts import rows_of
from ditpress.compress.distill.examples import Example, Mixed, mixed
from ditpress.compress.distill.trainer import Training, distill
from ditpress.compress.distill.trajectories import record_trajectories
from ditpress.load import load_denoiser


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_row_is_dealt_once_and_each_batch_has_all_timesteps() -> None:
    calls = [(float(timestep), range(rows)) for rows in (6, 6, 6, 3) for timestep in (900, 500, 100)]
    batches = mixed(calls, 6, generator())
    assert Counter(pick for batch in batches for pick in batch) == Counter(
        (index, row) for index, (_, rows) in enumerate(calls) for row in rows
    )
    assert {len(batch) for batch in batches} <= {5, 6}
    for batch in batches:
        counts = Counter(calls[index][0] for index, _ in batch)
        assert set(counts) == {900.0, 500.0, 100.0}
        assert max(counts.values()) - min(counts.values()) <= 1
    assert mixed(calls, 6, generator()) == batches
    assert mixed(calls, 6, generator(1)) != batches


def test_the_error_of_a_row_is_in_parts_of_the_signal_at_its_timestep() -> None:
    target, output = torch.randn(3, 2, 2, generator=generator()), torch.randn(3, 2, 2, generator=generator(1))
    energy = [0.5, 2.0, 4.0]
    expected = sum(
        float((output[row] - target[row]).double().square().sum()) / 4 / energy[row] for row in range(3)
    )
    found = Example({}, target, torch.tensor(energy)).error(output)
    assert float(found) == pytest.approx(expected / 3, rel=1e-6)


def recorded() -> tuple[torch.nn.Module, list[Call], list[Tensor]]:
    denoiser = load_denoiser(tiny_pipeline(seed=3))
    calls, outputs = record_trajectories(denoiser, samples=3, steps=4, guidance=2.0, seed=5, batch_size=2)
    return denoiser.transformer, calls, outputs


def whole(calls: list[Call]) -> list[range]:
    return [range(rows_of(call)) for call in calls]


def test_mixed_rows_have_the_answers_of_their_own_calls() -> None:
    transformer, calls, outputs = recorded()
    examples = Mixed(calls, outputs, whole(calls), generator())
    assert len(examples.timesteps) == 6  # 24 rows, at most four in a call
    seen = 0
    for index in range(6):
        example = examples[index]
        assert len(set(example.kwargs["timestep"].tolist())) == 4
        with torch.no_grad():
            answer = transformer(**example.kwargs).sample
        torch.testing.assert_close(answer, example.target, rtol=1e-4, atol=1e-5)
        for timestep, energy in zip(
            example.kwargs["timestep"].tolist(), example.energy.tolist(), strict=True
        ):
            own = [o for call, o in zip(calls, outputs, strict=True) if call.timestep == timestep]
            assert energy == pytest.approx(float(torch.cat(own).double().square().mean()), rel=1e-5)
            seen += 1
    assert seen == 24


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_mixed_rows() -> None:
    transformer, calls, outputs = recorded()
    parameters = [{"params": list(transformer.parameters())}]
    training = Training(steps=6, calls=1, learning_rate=1e-9)
    rows = whole(calls)
    losses = distill(transformer, transformer, calls, training, parameters, targets=outputs, rows=rows)
    assert max(losses) < 1e-8
    doubled = [2 * output for output in outputs]
    losses = distill(transformer, transformer, calls, training, parameters, targets=doubled, rows=rows)
    assert min(losses) > 0.2  # of the doubled signal, a half is missing: 1/4 of its energy on average
