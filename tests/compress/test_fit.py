"""From a float weight to codes: what is composed, and what it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantize_cases import correlated, error_of, weights

from ditpress.compress.quantize.fit import fit_weight
from ditpress.compress.quantize.spec import GptqSpec, WeightSpec
from ditpress.compress.quantize.vector import fit_vectors
from ditpress.errors import InputError
from ditpress.kernels.formats import FORMATS
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack

SCALARS = [name for name, format in FORMATS.items() if format.vector_length == 1]


def spec(**settings: object) -> WeightSpec:
    return WeightSpec.model_validate({"format": "int4", "group": 16} | settings)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("group", [16, "channel"])
@pytest.mark.parametrize("name", SCALARS)
def test_what_it_stands_for_is_what_the_layer_multiplies_by(
    name: str, group: int | str, rounding: str
) -> None:
    weight, moment = weights(9, 48), correlated(48)
    fitted = fit_weight(weight, spec(format=name, group=group, rounding=rounding), "fc", moment)
    layer = QuantizedLinear(
        pack(fitted.codes, fitted.format.entries),
        fitted.scale,
        fitted.format,
        48,
        activation="none",
        table=fitted.table,
    )
    assert torch.equal(layer.dequantize(), fitted.dequantize())
    codebook = fitted.format.codebook_tensor().double().numpy()[:, 0]
    table = np.zeros(9, int) if fitted.table is None else fitted.table.numpy().astype(int)
    values = codebook[fitted.format.entries * table[:, None] + fitted.codes.numpy()]
    scales = np.repeat(fitted.scale.double().numpy(), 48 // fitted.scale.shape[1], axis=1)
    assert np.allclose(fitted.dequantize().double().numpy(), values * scales, rtol=1e-6)
    if rounding == "nearest":  # GPTQ leaves more of the weight and less of the output
        error = float((fitted.dequantize() - weight).norm() / weight.norm())
        assert error < {"int8": 0.02, "ternary": 0.65, "ternary-2bit": 0.65}.get(name, 0.3)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ["vq-256x4", "vq-64x2"])
def test_codebooks_of_vectors_are_a_format_like_any_other(name: str, rounding: str) -> None:
    weight, moment = weights(40, 64), correlated(64)
    fitted = fit_weight(weight, spec(format=name, group="channel", rounding=rounding), "fc", moment)
    expected = fit_vectors(
        weight,
        FORMATS[name],
        torch.Generator().manual_seed(0),
        moment,
        rounding=rounding,  # type: ignore[arg-type]
    )
    assert torch.equal(fitted.dequantize(), expected.dequantize())


@pytest.mark.parametrize("name", ["int4", "fp4", "ternary"])
def test_gptq_lowers_the_output_error_and_refit_lowers_it_again(name: str) -> None:
    weight, moment = weights(24, 64), correlated(64, rank=16)
    nearest, rounded, refitted = (
        error_of(weight, fit_weight(weight, s, "fc", moment).dequantize(), moment)
        for s in (
            spec(format=name),
            spec(format=name, rounding="gptq"),
            spec(format=name, rounding="gptq", gptq=GptqSpec(refit=True)),
        )
    )
    assert refitted < rounded < 0.7 * nearest


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_ratios_of_scales_are_powers_of_two_on_request(rounding: str) -> None:
    weight = weights(8, 96) * torch.linspace(0.1, 3, 96)
    settings = {"format": "fp4-e2m1", "rounding": rounding, "gptq": GptqSpec(refit=True)}
    moment = correlated(96)
    free = fit_weight(weight, spec(**settings), "fc", moment).scale.double()
    bound = fit_weight(weight, spec(**settings, scale_ratios="power-of-two"), "fc", moment).scale.double()
    for scale, exact in ((free, False), (bound, True)):
        exponents = (scale / scale.amax(dim=1, keepdim=True)).log2()
        assert bool((exponents == exponents.round()).all()) == exact


def test_refusals_name_the_layer() -> None:
    with pytest.raises(InputError, match=r"fc: rounding: gptq needs the second moment of its inputs"):
        fit_weight(weights(4, 16), spec(rounding="gptq"), "fc")
    with pytest.raises(InputError, match=r"fc: K = 24 is not divisible by the group 16"):
        fit_weight(weights(4, 24), spec(), "fc")
    with pytest.raises(InputError, match=r"fc: format vq-256x4 has one scale per output row; .* got 16"):
        fit_weight(weights(4, 16), spec(format="vq-256x4"), "fc")
    with pytest.raises(InputError, match=r"fc: a codebook of 256 codewords is larger than the layer"):
        fit_weight(weights(4, 16), spec(format="vq-256x4", group="channel"), "fc")
    with pytest.raises(InputError, match=r"fc: scale_ratios: power-of-two is for format fp4-e2m1"):
        fit_weight(weights(4, 32), spec(scale_ratios="power-of-two"), "fc")
