"""The trainer: what it minimises, in which order it sees the calls, and that it learns."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from tiny_dit import tiny_pipeline
from torch import Tensor, nn

from ditpress.calibrate.calls import Call, record_calls
from ditpress.compress.distill.batches import stratified
from ditpress.compress.distill.losses import output_energy
from ditpress.compress.distill.trainer import Training, distill, rate_at
from ditpress.compress.distill.trajectories import record_trajectories
from ditpress.errors import InputError, StageError
from ditpress.load import load_denoiser
from ditpress.validate.paired import output_sqnr


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_batch_has_one_call_of_each_part_of_the_timesteps() -> None:
    timesteps = [float(t) for t in (900, 700, 500, 300, 100, 50)] * 5
    batches = list(islice(stratified(timesteps, 3, generator()), 20))
    for batch in batches:
        assert [int(timesteps[index] > 100) + int(timesteps[index] > 500) for index in batch] == [0, 1, 2]
    # The deck: after ten batches every call was seen once, after twenty twice.
    assert Counter(index for batch in batches[:10] for index in batch) == Counter(range(30))
    assert Counter(index for batch in batches for index in batch) == Counter(dict.fromkeys(range(30), 2))
    again = list(islice(stratified(timesteps, 3, generator()), 20))
    other = list(islice(stratified(timesteps, 3, generator(1)), 20))
    assert again == batches
    assert other != batches


def test_more_calls_a_step_than_timesteps() -> None:
    batches = list(islice(stratified([1.0, 2.0], 5, generator()), 2))
    assert [sorted(batch) for batch in batches] == [[0, 0, 0, 1, 1]] * 2


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rate_at(0, 1, 0.0) == 1.0


class Toy(nn.Module):
    """Two linear maps; answers as a diffusers transformer does."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator(seed))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.second(self.first(x)),)


def toy_calls(count: int = 12, seed: int = 0) -> list[Call]:
    draws = generator(seed)
    return [
        Call(float(i % 3), {"x": torch.randn(5, 4, generator=draws) * 10 ** (i % 3)}) for i in range(count)
    ]


def groups(student: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(student.parameters())}]


def test_the_loss_is_the_error_in_parts_of_the_signal() -> None:
    teacher, student, calls = Toy(0), Toy(1), toy_calls()
    start = copy.deepcopy(student)
    training = Training(steps=1, calls=3, features=0.5, learning_rate=1e-9)
    (loss,) = distill(student, teacher, calls, training, groups(student), blocks=[("first", "first")])
    (batch,) = islice(stratified([call.timestep for call in calls], 3, generator()), 1)
    expected = 0.0
    for index in batch:
        x = calls[index].kwargs["x"]
        energy = torch.cat(
            [teacher(c.kwargs["x"])[0] for c in calls if c.timestep == calls[index].timestep]
        ).double()
        output = (start(x)[0] - teacher(x)[0]).double().square().mean() / energy.square().mean()
        block = (start.first(x) - teacher.first(x)).square().sum() / teacher.first(x).square().sum()
        expected += float(output + 0.5 * block) / 3
    assert loss == pytest.approx(expected, rel=1e-5)


def test_energy_of_timesteps() -> None:
    energy = output_energy(
        [1.0, 2.0, 1.0, 3.0], [torch.ones(4), 3 * torch.ones(2), torch.zeros(4), torch.zeros(2)]
    )
    assert energy == {1.0: 0.5, 2.0: 9.0, 3.0: 1.0}


def test_it_learns_the_teacher_and_repeats_itself() -> None:
    teacher, calls, held_out = Toy(0), toy_calls(), toy_calls(6, seed=9)
    students, histories = [], []
    for _ in range(2):
        student = Toy(1)
        training = Training(steps=400, calls=3, learning_rate=0.05, clip=1.0, ema=0.9)
        histories.append(distill(student, teacher, calls, training, groups(student)))
        students.append(student)
    assert histories[0] == histories[1]
    state, again = students[0].state_dict(), students[1].state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    before, after = (
        output_sqnr(lambda x: teacher(x)[0], lambda x, s=s: s(x)[0], held_out) for s in (Toy(1), students[0])
    )
    assert after.total_db > before.total_db + 20
    assert min(after.by_timestep.values()) > 10  # the weakest timestep too, whose signal is 1/10000
    assert not any(p.requires_grad or p.grad is not None for p in students[0].parameters())


def test_only_the_named_parameters_change_at_their_rate() -> None:
    teacher, student, calls = Toy(0), Toy(1), toy_calls()
    start = copy.deepcopy(student)
    training = Training(steps=1, calls=1, learning_rate=0.01, warmup=0.0, clip=None)
    parts = [{"params": [student.first.weight]}, {"params": [student.second.weight], "rate": 0.1}]
    distill(student, teacher, calls, training, parts)
    # The first step of Adam moves every entry by its rate.
    moved = (student.first.weight - start.first.weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=1e-6)
    moved = (student.second.weight - start.second.weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.001), rtol=1e-2, atol=1e-6)
    assert torch.equal(student.first.bias, start.first.bias)


def test_trajectories_carry_the_answers() -> None:
    denoiser = load_denoiser(tiny_pipeline(seed=3))
    calls, outputs = record_trajectories(denoiser, samples=3, steps=2, guidance=2.0, seed=5, batch_size=2)
    assert [len(call.kwargs["hidden_states"]) for call in calls] == [4, 4, 2, 2]
    with torch.no_grad():
        for call, output in zip(calls, outputs, strict=True):
            assert torch.equal(denoiser.transformer(**call.kwargs).sample, output)
    assert not denoiser.transformer._forward_hooks
    images = denoiser.sample(range(5, 8), steps=2, guidance=2.0)
    later = denoiser.sample(range(5, 8), steps=2, guidance=2.0, batch_size=2)
    torch.testing.assert_close(images, later)  # the classes too are those of one drawing


def test_refusals() -> None:
    teacher, student = Toy(0), Toy(1)
    with pytest.raises(InputError, match="0 calls"):
        distill(student, teacher, [], Training(), groups(student))
    with pytest.raises(InputError, match="no block is named"):
        distill(student, teacher, toy_calls(), Training(features=1.0), groups(student))
    broken = toy_calls()
    for call in broken:
        call.kwargs["x"][0, 0] = float("nan")
    with pytest.raises(StageError, match="loss is nan at step 0; lower the learning rate"):
        distill(student, teacher, broken, Training(steps=2), groups(student))


def test_blocks_of_a_transformer_are_compared() -> None:
    """Only the second block is trained, only by its features: its error falls."""
    denoiser = load_denoiser(tiny_pipeline(seed=3))
    teacher = denoiser.transformer
    calls = record_calls(denoiser, samples=4, steps=4, guidance=2.0, seed=0, batch_size=2)
    assert len(calls) == 8
    student = copy.deepcopy(teacher)
    weight = student.transformer_blocks[1].ff.net[2].weight
    with torch.no_grad():
        weight += 0.1 * torch.randn(weight.shape, generator=generator())
    history = distill(
        student,
        teacher,
        calls,
        Training(steps=60, calls=2, learning_rate=5e-3, features=1.0),
        [{"params": [weight]}],
        blocks=[
            ("transformer_blocks.0", "transformer_blocks.0"),
            ("transformer_blocks.1", "transformer_blocks.1"),
        ],
    )
    assert sum(history[-5:]) < 0.2 * sum(history[:5])
