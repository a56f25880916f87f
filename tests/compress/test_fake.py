"""Fake-quantized layers: the packed layer's bits, and the gradients of the straight-through estimator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ditpress.compress.quantize.fake import FakeQuantizedLinear, fake_activation, refitted_scale
from ditpress.compress.stage import LayerFormat
from ditpress.kernels.formats import FORMATS
from ditpress.kernels.reference import qlinear_reference, quantize_rows

SCALARS = [name for name, format in FORMATS.items() if format.vector_length == 1 and format.codebook]
ROWS, COLUMNS = 24, 96


def linear(seed: int = 0, bias: bool = True) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    made = nn.Linear(COLUMNS, ROWS, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    return made


def trained(name: str, group: int, activation: str, fold: bool, bias: bool = True) -> FakeQuantizedLinear:
    """A fake layer as training leaves it: latent weights and scales that no search would give."""
    fake = FakeQuantizedLinear.of(linear(1, bias), LayerFormat(name, group, activation, fold))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        fake.weight += 0.05 * torch.randn(fake.weight.shape, generator=generator)
        fake.scale *= 1 + 0.3 * torch.randn(fake.scale.shape, generator=generator)
        fake.scale[3] = 0.0
        fake.weight[5, :group] = 0.0
    return fake


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("group", "activation", "fold"),
    [(16, "int8", False), (16, "int8", True), (16, "none", True), (COLUMNS, "int8", True), (48, "none", False)],
)
@pytest.mark.parametrize("name", SCALARS)
def test_hardening_changes_no_bit(name: str, group: int, activation: str, fold: bool, bias: bool) -> None:
    fake = trained(name, group, activation, fold, bias)
    packed = fake.harden()
    assert torch.equal(fake.effective_weight(), packed.dequantize())
    x = 3 * torch.randn(7, COLUMNS, generator=torch.Generator().manual_seed(4))
    seen = fake_activation(x, fake.activation)
    if activation == "int8":
        q, a = quantize_rows(x)
        assert torch.equal(seen, q * a)
        assert torch.equal((seen.double() / a.double()).round().float(), q)  # the integers can be read back
    else:
        assert torch.equal(seen, x)
    expected = qlinear_reference(
        x, packed.codes, packed.scale, packed.codebook, packed.bias, activation, packed.fold_scales
    )
    torch.testing.assert_close(fake(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(packed(x), expected) or activation == "none"


@pytest.mark.parametrize("name", SCALARS)
def test_weights_are_the_nearest_of_the_table(name: str) -> None:
    fake = trained(name, 16, "int8", False)
    table = np.array([v for v in FORMATS[name].codebook_tensor().flatten().tolist() if v >= -127], np.float64)
    scale = fake.scale.detach().half().double().numpy()
    latent = fake.weight.detach().double().numpy().reshape(ROWS, -1, 16)
    choices = scale[..., None, None] * table
    best = np.abs(latent[..., None] - choices).min(-1)
    got = fake.effective_weight().detach().double().numpy().reshape(latent.shape)
    np.testing.assert_allclose(np.abs(latent - got), best, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("group", [16, COLUMNS])
@pytest.mark.parametrize("name", ["ternary", "int4", "fp4-e2m1"])
def test_gradients_pass_straight_through(name: str, group: int) -> None:
    fake = trained(name, group, "int8", False)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(7, COLUMNS, generator=generator, requires_grad=True)
    upstream = torch.randn(7, ROWS, generator=generator)
    (fake(x) * upstream).sum().backward()
    q, a = quantize_rows(x.detach())
    by_weight = upstream.double().T @ (q.double() * a.double())  # dL/dW of y = x Wᵀ
    packed = fake.harden()
    weight = packed.dequantize().double()
    stored = packed.scale.double()
    groups = weight.view(ROWS, -1, group)
    values = torch.where(stored[..., None] == 0, 0.0, groups / stored[..., None])  # v(w / s)
    by_scale = (by_weight.view(groups.shape) * values).sum(-1)
    assert fake.bias is not None
    for grad, expected in (
        (fake.weight.grad, by_weight),
        (fake.scale.grad, by_scale),
        (fake.bias.grad, upstream.double().sum(0)),
        (x.grad, upstream.double() @ weight),
    ):
        assert grad is not None
        torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCALARS)
def test_refitted_scale_is_that_of_least_squares(name: str) -> None:
    fake = trained(name, 16, "int8", False)
    weight, scale = fake.weight.detach(), fake.scale.detach().clone()
    refitted = refitted_scale(weight, scale, fake.format)
    split = weight.view(ROWS, -1, 16).double().numpy()
    for row in range(ROWS):
        for group in range(COLUMNS // 16):
            s = float(scale[row, group])
            table = fake.format.codebook_tensor().flatten().double().numpy()
            table = table[table >= -127]
            values = (
                table[np.abs(split[row, group][:, None] - s * table).argmin(1)] if s else np.zeros(16)
            )
            if not values.any():
                assert float(refitted[row, group]) == s
                continue
            solved = np.linalg.lstsq(values[:, None], split[row, group], rcond=None)[0][0]
            assert float(refitted[row, group]) == pytest.approx(solved, rel=1e-3)


def test_refitting_by_turns_ends_at_the_ternary_optimum_or_above() -> None:
    """Codes and scale by turns never lose, and the exact search is not beaten."""
    best = FakeQuantizedLinear.of(linear(6), LayerFormat("ternary", 16, "int8"))
    fake = FakeQuantizedLinear(best.weight, best.scale * 1.5, best.bias, best.layer)

    def error(layer: FakeQuantizedLinear) -> float:
        return float((layer.effective_weight() - layer.weight).double().square().sum())

    errors = [error(fake)]
    for _ in range(8):
        fake.refit()
        errors.append(error(fake))
    assert all(after <= before * (1 + 1e-3) for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.8 * errors[0]
    assert error(best) <= errors[-1] * (1 + 1e-3)
