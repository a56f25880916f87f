"""Learned masks of blocks: their draws, their gradients, and what they find."""

from __future__ import annotations

from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_cases import LEARNED, denoiser, plant_identities, recorded, smaller, stage
from resume_cases import check_resumed

from ditpress.compress.prune.depth_learned import Gates, Group, LearnedSpec
from ditpress.compress.prune.masks import all_masks, gumbel_noise, sample_mask
from ditpress.compress.stage import RunContext
from ditpress.load import Denoiser


@pytest.mark.parametrize(("keep", "size"), [(1, 2), (2, 4), (3, 4), (3, 6)])
def test_all_masks_are_all_that_there_are(keep: int, size: int) -> None:
    masks = all_masks(keep, size)
    every = {bits for bits in product((0.0, 1.0), repeat=size) if sum(bits) == keep}
    assert {tuple(row) for row in masks.tolist()} == every
    assert len(masks) == comb(size, keep)
    fixed = all_masks(keep, size, [size - 1])
    assert {tuple(row) for row in fixed.tolist()} == {bits for bits in every if bits[-1]}


def test_gradients_of_a_sample_are_those_of_the_soft_relaxation() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = all_masks(2, 4)
    weights = torch.randn(4, generator=generator, dtype=torch.float64)
    for tau in (4.0, 0.7):
        noise = gumbel_noise(6, generator).double()
        logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
        mask = sample_mask(logits, masks.double(), noise, tau)
        assert mask.tolist() == masks[int((logits + noise).argmax())].tolist()
        (gradient,) = torch.autograd.grad(mask @ weights, logits)
        soft = torch.exp((logits + noise) / tau) / torch.exp((logits + noise) / tau).sum()
        jacobian = (torch.diag(soft) - torch.outer(soft, soft)) / tau
        torch.testing.assert_close(gradient, jacobian @ (masks.double() @ weights))


def test_masks_are_drawn_as_often_as_the_softmax_says() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, masks = torch.tensor([0.0, 1.0, -1.0]), torch.eye(3)
    drawn = sum(sample_mask(logits, masks, gumbel_noise(3, generator), 1.0) for _ in range(4000)) / 4000
    torch.testing.assert_close(drawn, logits.softmax(0), atol=0.03, rtol=0)


def test_schedules_and_decision() -> None:
    spec = LearnedSpec(training={"steps": 5}, tau=(4.0, 0.1), scaling=(100.0, 100.0))
    groups = [Group(("b.0", "b.1"), all_masks(1, 2)), Group(("b.2", "b.3"), all_masks(1, 2))]
    gates = Gates(groups, spec, torch.device("cpu"))
    with torch.no_grad():
        gates.logits[0].copy_(torch.tensor([0.0, 0.02]))
        gates.logits[1].copy_(torch.tensor([0.03, 0.0]))
    temperatures = []
    for _ in range(5):
        temperatures.append(gates._at(spec.tau))
        gates.advance()
    assert temperatures == pytest.approx([4.0, 3.025, 2.05, 1.075, 0.1])
    assert gates.kept() == ["b.1", "b.2"]
    probabilities = gates.probabilities()
    assert probabilities["b.1"] == pytest.approx(1 / (1 + torch.exp(torch.tensor(-2.0)).item()))
    assert probabilities["b.0"] + probabilities["b.1"] == pytest.approx(1.0)


@pytest.mark.parametrize("planted", [(0, 3), (1, 2)])
def test_learned_masks_find_the_blocks_that_do_nothing(planted: tuple[int, int]) -> None:
    model = denoiser()
    plant_identities(model.transformer, planted)
    before = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    kept = [index for index in range(4) if index not in planted]
    expected = smaller(model.transformer, {"transformer_blocks": kept}, num_layers=2).state_dict()
    facts = stage(learned=LEARNED).apply_calls(model, {}, recorded(model))
    assert facts["kept_blocks"] == {"transformer_blocks": kept}
    assert all(facts["block_scores"][f"transformer_blocks.{i}"] > 0.6 for i in kept)
    after = model.transformer.state_dict()
    assert set(after) == set(expected) < set(before)
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert not any(module._forward_hooks for module in model.transformer.modules())


def test_resumed_masks_are_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = LEARNED | {"save_every": 4, "training": LEARNED["training"] | {"steps": 14}}

    def learn(work: Path | None) -> tuple[Denoiser, Any]:
        model = denoiser()
        context = RunContext(recorded(model), work=work)
        return model, stage(learned=learned).apply_in_run(model, {}, context)

    check_resumed(learn, tmp_path / "work", monkeypatch, steps=14, killed=11, saved=8)
