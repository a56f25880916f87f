"""GPTQ for codewords against the slow algorithm: one inverse per sub-vector, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantize_cases import correlated, error_of, weights
from torch import Tensor

from ditpress.compress.quantize.gptq import gptq
from ditpress.compress.quantize.vector import fit_vectors
from ditpress.compress.quantize.vector_gptq import vector_gptq
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format


def slow(weight: Tensor, scale: Tensor, codebook: Tensor, moment: Tensor, act_order: bool) -> np.ndarray:
    """Codes by algorithm 1 of GPTVQ, without its factorization: the sub-vector J costs ``e [H⁻¹]_JJ⁻¹ eᵀ``
    and the columns not yet rounded take ``-e [H⁻¹]_JJ⁻¹ (H⁻¹)_J:``, the inverse over them alone."""
    w, h, c = (x.double().numpy().copy() for x in (weight, moment, codebook))
    h += 0.01 * np.diag(h).mean() * np.eye(len(h))
    d = c.shape[1]
    size = np.diag(h).reshape(-1, d).sum(axis=1)
    order = np.argsort(-size, kind="stable") if act_order else np.arange(len(size))
    codes = np.empty((len(w), len(order)), dtype=int)
    for place, q in enumerate(order):
        rest = np.concatenate([np.arange(k * d, (k + 1) * d) for k in order[place:]])
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        own = np.linalg.inv(inverse[:d, :d])
        for n in range(len(w)):
            errors = w[n, rest[:d]] - float(scale[n, 0]) * c
            codes[n, q] = np.argmin(np.einsum("ei,ij,ej->e", errors, own, errors))
            w[n, rest] -= errors[codes[n, q]] @ own @ inverse[:d]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("length", [2, 4])
def test_codes_are_those_of_the_paper(length: int, act_order: bool) -> None:
    moment, weight = correlated(48), weights(10, 48)
    codebook = torch.randn(32, length, generator=torch.Generator().manual_seed(1)).mul(40).round()
    scale = weight.square().mean(dim=1, keepdim=True).sqrt() / 40
    codes = vector_gptq(weight, scale, codebook, moment, act_order=act_order, block=20)
    assert np.array_equal(codes.numpy(), slow(weight, scale, codebook, moment, act_order))


@pytest.mark.parametrize("act_order", [True, False])
def test_with_one_column_it_is_gptq(act_order: bool) -> None:
    moment, weight, format = correlated(32), weights(8, 32), get_format("int4")
    scale = weight.abs().amax(dim=1, keepdim=True) / 7
    codebook = format.codebook_tensor().float()
    codes = vector_gptq(weight, scale, codebook, moment, act_order=act_order, block=12)
    assert torch.equal(codes.to(torch.uint8), gptq(weight, scale, format, moment, act_order=act_order))


@pytest.mark.parametrize("name", ["vq-256x4", "vq-64x2"])
def test_it_lowers_the_output_error(name: str) -> None:
    weight, moment, format = weights(48, 64), correlated(64, rank=16), get_format(name)

    def error(rounding: str) -> float:
        generator = torch.Generator().manual_seed(0)
        fitted = fit_vectors(weight, format, generator, moment, rounding=rounding)  # type: ignore[arg-type]
        return float(error_of(weight, fitted.dequantize(), moment))

    assert error("gptq") < 0.5 * error("nearest")


def test_a_row_of_zeros_disturbs_no_other() -> None:
    weight, moment = weights(8, 32), correlated(32)
    weight[3] = 0.0
    scale = weight.any(dim=1, keepdim=True).float()
    codebook = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    others = [row for row in range(8) if row != 3]
    expected = slow(weight[others], scale[others], codebook, moment, True)
    assert np.array_equal(vector_gptq(weight, scale, codebook, moment)[others].numpy(), expected)


def test_it_needs_the_whole_second_moment() -> None:
    weight = weights(48, 64)
    for moment in (None, torch.ones(64)):
        with pytest.raises(InputError, match="fc1: rounding: gptq needs the second moment"):
            fit_vectors(weight, get_format("vq-64x2"), torch.Generator(), moment, "fc1", rounding="gptq")
    with pytest.raises(InputError, match=r"fc1: second moment of its inputs is \[8, 8\]"):
        vector_gptq(weight, torch.ones(48, 1), torch.ones(4, 4), torch.eye(8), name="fc1")
