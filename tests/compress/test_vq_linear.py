"""The trainable twin: candidate weights, ratios, freezing, hardening, and the bits that are stored."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ditpress.compress.quantize.vector import channel_weights, fit_vectors
from ditpress.compress.quantize.vector_linear import VectorLinear, candidate_logits, ratio_penalty
from ditpress.kernels.formats import get_format

ROWS, COLUMNS = 24, 32
PLAIN = channel_weights(None, COLUMNS)


def made(candidates: int = 0, seed: int = 0, name: str = "vq-64x2") -> tuple[VectorLinear, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    bias = torch.randn(ROWS, generator=generator)
    layer = VectorLinear(fit_vectors(weight, get_format(name), generator), bias, "none")
    if candidates:
        layer.open_candidates(weight, PLAIN, candidates)
    return layer, weight


def test_ratios_are_in_proportion_to_the_inverse_distance() -> None:
    distances = torch.tensor([[0.5, 1.0], [1.0, 3.0], [2.0, 2.0]])
    ratios = candidate_logits(distances).softmax(dim=1)
    for row, (a, b) in zip(ratios.tolist(), distances.tolist(), strict=True):
        assert row == pytest.approx([b / (a + b), a / (a + b)])
    three = candidate_logits(torch.tensor([[1.0, 2.0, 4.0]])).softmax(dim=1)
    assert three[0].tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_a_codeword_that_is_met_exactly_wins_without_infinities() -> None:
    ratios = candidate_logits(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).softmax(dim=1)
    assert float(ratios[0, 0]) > 0.9999
    assert ratios[1].tolist() == [0.5, 0.5]


def test_the_weight_is_the_mix_of_the_two_nearest_codewords() -> None:
    layer, weight = made(candidates=2)
    codebook = layer.codebook.detach().double()
    expected = torch.empty(ROWS, COLUMNS, dtype=torch.float64)
    for row in range(ROWS):
        scale = float(layer.scale.detach()[row, 0])
        for first in range(0, COLUMNS, 2):
            vector = weight[row, first : first + 2].double()
            distances = (vector - scale * codebook).square().sum(dim=1).sqrt()
            near, far = distances.sort().indices[:2].tolist()
            ratio = (1 / distances[near]) / (1 / distances[near] + 1 / distances[far])
            mixed = ratio * codebook[near] + (1 - ratio) * codebook[far]
            expected[row, first : first + 2] = scale * mixed
    torch.testing.assert_close(layer.weight().double(), expected, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_that_of_the_paper() -> None:
    ratios = torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]])
    entries = [0.25, 0.25, 0.09, 0.09, 0.0, 0.0]
    assert float(ratio_penalty(ratios)) == pytest.approx(2 * sum(entries) / 6)


def test_gradients_reach_codebook_scale_and_logits() -> None:
    layer, _ = made(candidates=2)
    layer.double()
    x = torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = [layer.scale, layer.logits]
    assert all(parameter is not None for parameter in parameters)
    layer(x).square().sum().backward()
    for parameter in parameters:
        assert parameter is not None
        assert parameter.grad is not None
        index = int(parameter.grad.abs().argmax())
        flat, step = parameter.data.view(-1), 1e-6
        values = []
        for sign in (1, -1):
            flat[index] += sign * step
            values.append(float(layer(x).square().sum().detach()))
            flat[index] -= sign * step
        difference = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad.view(-1)[index]) == pytest.approx(difference, rel=1e-4)
    # The rounding of the codebook passes the gradient on as if it were not there.
    assert layer.codebook.grad is not None
    assert layer.logits is not None
    mixed = layer.ratios().detach()
    expected = torch.zeros_like(layer.codebook)
    outer = 2 * layer(x).detach().T @ x * layer.scale.detach()
    for place, vector in enumerate(outer.view(-1, 2)):
        for choice in range(2):
            expected[layer.codes[place, choice]] += mixed[place, choice] * vector
    torch.testing.assert_close(layer.codebook.grad, expected)


def test_decided_ratios_freeze_and_a_hardened_layer_keeps_the_winner() -> None:
    layer, _ = made(candidates=2)
    assert layer.logits is not None
    codes = layer.codes.clone()
    with torch.no_grad():
        layer.logits.zero_()
        layer.logits[:10, 1] = math.log(0.995 / 0.005)  # 0.995 > 0.99
        layer.logits[10:20, 0] = math.log(0.985 / 0.015)
    assert layer.freeze() == pytest.approx(10 / len(codes))
    ratios = layer.ratios()
    assert ratios[:10].tolist() == [[0.0, 1.0]] * 10
    assert float(ratios[10, 0]) == pytest.approx(0.985)
    layer.weight().square().sum().backward()
    assert layer.logits.grad is not None
    assert not bool(layer.logits.grad[:10].any())
    assert bool(layer.logits.grad[10:].any())
    layer.harden()
    assert layer.logits is None
    assert torch.equal(layer.codes[:10], codes[:10, 1])
    assert torch.equal(layer.codes[10:20], codes[10:20, 0])


@pytest.mark.parametrize("candidates", [0, 3])
def test_the_stored_layer_has_the_trained_weight_bit_for_bit(candidates: int) -> None:
    layer, _ = made(candidates)
    with torch.no_grad():
        layer.codebook += torch.randn(layer.codebook.shape, generator=torch.Generator().manual_seed(4))
        layer.codebook[3] = 300.0  # beyond int8
        layer.scale *= 1.1
    layer.harden()
    stored = layer.quantized()
    assert int(stored.codebook.max()) == 127
    assert torch.equal(stored.dequantize(), layer.weight())
    x = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(stored(x), layer(x), rtol=1e-5, atol=1e-4)
