"""Vector quantization of a weight: least squares, the int8 codebook in the kernel, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ditpress.compress.quantize.vector import (
    channel_weights,
    check_vectors,
    fit_scale,
    fit_vectors,
    refit,
    round_codebook,
)
from ditpress.errors import InputError
from ditpress.kernels.formats import Format, get_format
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 1, rows)[:, None]  # rows of very different size
    return torch.randn(rows, columns, generator=generator) * sizes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["vq-256x4", "vq-64x2"])
def test_the_kernel_multiplies_by_scale_times_codebook(name: str) -> None:
    weight = normal(48, 64)
    fitted = fit_vectors(weight, get_format(name), seeded())
    assert fitted.codebook is not None
    assert fitted.codebook.dtype == torch.int8
    assert int(fitted.codebook.abs().max()) == 127
    expected = torch.empty_like(weight)
    length = fitted.format.vector_length
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            entry = fitted.codebook[int(fitted.codes[row, column // length]), column % length]
            expected[row, column] = fitted.scale[row, 0] * float(entry)
    layer = QuantizedLinear(
        pack(fitted.codes, fitted.format.entries),
        fitted.scale,
        fitted.format,
        64,
        codebook=fitted.codebook,
    )
    assert torch.equal(layer.dequantize(), expected)
    assert torch.equal(fitted.dequantize(), expected)
    # Whole inputs with 127 among them are exact in int8: the kernel's product is the plain one.
    x = torch.randint(-127, 128, (5, 64), generator=seeded(1)).float()
    x[:, 0] = 127.0
    product = (x.double() @ expected.double().T).float()
    torch.testing.assert_close(layer(x), product, rtol=1e-6, atol=1e-4 * float(product.abs().max()))


def test_two_bits_are_better_than_the_best_scalar_quantizer_of_two_bits() -> None:
    weight = torch.randn(128, 128, generator=seeded(7))
    error = fit_vectors(weight, get_format("vq-256x4"), seeded()).dequantize() - weight
    # Lloyd-Max of four levels on a normal distribution: 0.1175 of the variance (Max 1960, table I).
    assert float(error.square().mean() / weight.square().mean()) < 0.1175


def test_every_code_is_the_nearest_and_every_scale_the_best() -> None:
    weight, importance = normal(24, 32), torch.rand(32, generator=seeded(2)) + 0.1
    codebook, _ = round_codebook(torch.randn(16, 4, generator=seeded(3)))
    codes, scale = refit(weight, weight.square().mean(dim=1, keepdim=True).sqrt() / 60, codebook, importance)
    values = codebook.double()
    h = importance.double().view(-1, 4)
    for row in range(24):
        vectors, s = weight[row].double().view(-1, 4), scale[row].double()
        cost = (h[:, None] * (vectors[:, None] - s * values).square()).sum(dim=-1)
        chosen = cost.gather(1, codes[row][:, None]).squeeze(1)
        torch.testing.assert_close(chosen, cost.amin(dim=1), rtol=1e-3, atol=1e-9)
        v, w, k = values[codes[row]].flatten(), weight[row].double(), importance.double()
        torch.testing.assert_close(s, ((k * v * w).sum() / (k * v * v).sum())[None], rtol=1e-5, atol=0.0)


def test_refitting_never_adds_error() -> None:
    weight, importance = normal(16, 64), torch.rand(64, generator=seeded(4)) + 0.1
    codebook, _ = round_codebook(torch.randn(64, 2, generator=seeded(5)))
    start = weight.square().mean(dim=1, keepdim=True).sqrt() / 40
    errors = []
    for rounds in (1, 2, 4, 8):
        codes, scale = refit(weight, start, codebook, importance, rounds)
        values = codebook.float()[codes].view(weight.shape)
        errors.append(float((importance * (weight - scale * values).square()).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_scales_are_least_squares() -> None:
    weight, values = normal(6, 8), torch.randn(6, 8, generator=seeded(6))
    values[3] = 0.0
    found = fit_scale(weight, values, torch.ones(8))
    for row in (0, 1, 2, 4, 5):
        solution = torch.linalg.lstsq(values[row][:, None].double(), weight[row][:, None].double()).solution
        torch.testing.assert_close(found[row].double(), solution[0], rtol=1e-5, atol=0.0)
    assert float(found[3]) == 0.0


def test_loud_channels_are_kept_better() -> None:
    weight = torch.randn(64, 64, generator=seeded(8))
    moment = torch.ones(64)
    moment[::4] = 100.0
    plain = fit_vectors(weight, get_format("vq-256x4"), seeded()).dequantize() - weight
    aware = fit_vectors(weight, get_format("vq-256x4"), seeded(), torch.diag(moment)).dequantize() - weight
    assert float((moment * aware.square()).sum()) < 0.5 * float((moment * plain.square()).sum())
    assert torch.equal(channel_weights(torch.diag(moment), 64), channel_weights(moment, 64))
    assert torch.equal(channel_weights(torch.zeros(64), 64), torch.ones(64))


def test_rows_and_columns_of_zeros_stay_zero() -> None:
    weight = normal(32, 64)
    weight[3] = 0.0
    fitted = fit_vectors(weight, get_format("vq-64x2"), seeded())
    assert bool((fitted.dequantize()[3].abs() <= 0.02 * weight.abs().max()).all())
    zero = fit_vectors(torch.zeros(32, 64), get_format("vq-64x2"), seeded())
    assert torch.equal(zero.dequantize(), torch.zeros(32, 64))


def test_equal_seeds_give_equal_bits() -> None:
    weight, format = normal(32, 64), get_format("vq-256x4")
    a, b, c = (fit_vectors(weight, format, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scale, b.scale)
    assert a.codebook is not None
    assert b.codebook is not None
    assert torch.equal(a.codebook, b.codebook)
    assert not torch.equal(a.codes, c.codes)


@pytest.mark.parametrize(
    ("rows", "columns", "format", "message"),
    [
        (
            8,
            16,
            get_format("vq-256x4"),
            r"to_q: a codebook of 256 codewords is larger than .* 32 sub-vectors",
        ),
        (4, 16, get_format("vq-64x2"), r"to_q: a codebook of 64 codewords .* 32 sub-vectors .* skip"),
        (512, 6, get_format("vq-256x4"), r"to_q: .* sub-vectors of 4 weights, but K = 6; skip"),
    ],
)
def test_layers_that_the_format_cannot_hold(rows: int, columns: int, format: Format, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_vectors(torch.randn(rows, columns, generator=seeded()), format, seeded(), name="to_q")
    with pytest.raises(InputError, match=message):
        check_vectors(rows, columns, format, "to_q")


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = normal(32, 64)
    weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="to_k holds NaN or infinite"):
        fit_vectors(weight, get_format("vq-64x2"), seeded(), name="to_k")
