"""GPTQ against the slow algorithm: one inverse per column, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantize_cases import correlated, error_of, usable, weights
from torch import Tensor

from ditpress.compress.quantize.fitted import FittedWeight
from ditpress.compress.quantize.gptq import gptq, inverse_factor, output_error
from ditpress.compress.quantize.refit import refit_scale
from ditpress.compress.quantize.rtn import round_to_nearest, search_scale
from ditpress.errors import InputError, StageError
from ditpress.kernels.formats import FORMATS, Format

NAMES = ["int4", "int8", "fp4-e2m1", "fp4-e3m0", "nf4", "ternary"]


def slow(weight: Tensor, scale: Tensor, tables: np.ndarray, moment: Tensor, act_order: bool) -> np.ndarray:
    """Values in units of the scale, by eq. 2 and 3 of the paper (Optimal Brain Quantization in fixed order):
    the columns not yet rounded take ``-(w_q - ŵ_q) / [H⁻¹]_qq (H⁻¹)_q:`` with the inverse over them alone."""
    w, h = weight.double().numpy().copy(), moment.double().numpy().copy()
    h += 0.01 * np.diag(h).mean() * np.eye(len(h))
    s = np.repeat(scale.double().numpy(), w.shape[1] // scale.shape[1], axis=1)
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(len(h))
    result = np.empty_like(w)
    for place, q in enumerate(order):
        rest = order[place:]
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        for n in range(len(w)):
            value = tables[n][np.nanargmin((s[n, q] * tables[n] - w[n, q]) ** 2)]
            result[n, q] = value
            w[n, rest] -= (w[n, q] - s[n, q] * value) / inverse[0, 0] * inverse[0]
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_codes_are_those_of_the_paper(name: str, act_order: bool) -> None:
    format, moment, weight = FORMATS[name], correlated(48), weights(10, 48)
    scale = search_scale(weight.view(10, 3, 16), format, torch.float16)
    codes = gptq(weight, scale, format, moment, act_order=act_order, block=20)
    values = usable(format)
    expected = slow(weight, scale, np.tile(values, (10, 1)), moment, act_order)
    assert np.array_equal(values[codes.numpy()], expected)


def test_rows_may_have_tables_of_their_own() -> None:
    three = tuple(v for name in ("fp4-e2m1", "fp4-e1m2", "fp4-e3m0") for v in FORMATS[name].codebook or ())
    format = _of_tables(three)
    table = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    moment, weight = correlated(32, seed=3), weights(7, 32, seed=4)
    tables = format.codebook_tensor().flatten().double().numpy().reshape(3, 16)[table]
    scale = (weight.abs().amax(dim=1) / torch.from_numpy(np.abs(tables).max(axis=1)).float())[:, None]
    codes = gptq(weight, scale, format, moment, table, block=8)
    fitted = FittedWeight(codes, scale, format, table=table.to(torch.uint8))
    expected = slow(weight, scale, tables, moment, act_order=True)
    assert np.array_equal(fitted.values().numpy(), expected)
    got = fitted.dequantize().double().numpy()
    assert np.allclose(got, expected * scale.double().numpy(), rtol=1e-6)
    nearest = round_to_nearest(weight.view(7, 1, 32), scale, format, table).view(7, 32)
    values = tables[np.arange(7)[:, None], nearest.numpy()] * scale.double().numpy()
    best = np.abs(tables[:, None] * scale.double().numpy()[:, :, None] - weight.double().numpy()[..., None])
    assert np.allclose(np.abs(values - weight.double().numpy()), best.min(axis=-1), atol=1e-8)


class _of_tables(Format):  # a format with several tables, whatever formats.py can say about them
    def __init__(self, codebook: tuple[tuple[int, ...], ...]) -> None:
        for key, value in {"name": "three", "entries": 16, "codebook": codebook, "vector_length": 1}.items():
            object.__setattr__(self, key, value)


@pytest.mark.parametrize("name", ["int4", "nf4", "ternary"])
@pytest.mark.parametrize("act_order", [True, False])
def test_output_error_is_below_that_of_nearest(name: str, act_order: bool) -> None:
    format = FORMATS[name]
    for seed in range(4):
        moment, weight = correlated(64, seed=seed, rank=24), weights(16, 64, seed=seed + 9)
        groups = weight.view(16, 4, 16)
        scale = search_scale(groups, format, torch.float16)
        nearest = FittedWeight(round_to_nearest(groups, scale, format).view(16, 64), scale, format)
        rounded = FittedWeight(gptq(weight, scale, format, moment, act_order=act_order), scale, format)
        before = error_of(weight, nearest.dequantize(), moment)
        after = error_of(weight, rounded.dequantize(), moment)
        assert after < 0.7 * before
        assert output_error(rounded.dequantize() - weight, moment) == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_uncorrelated_inputs_give_nearest(name: str) -> None:
    format, weight = FORMATS[name], weights(12, 96, seed=5)
    scale = search_scale(weight.view(12, 2, 48), format, torch.float16)
    nearest = round_to_nearest(weight.view(12, 2, 48), scale, format).view(12, 96)
    assert torch.equal(gptq(weight, scale, format, torch.eye(96)), nearest)
    sizes = torch.rand(96, generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.equal(gptq(weight, scale, format, sizes.diag(), block=7), nearest)


def test_dead_inputs_are_rounded_to_nearest_and_change_nothing_else() -> None:
    format, weight, moment = FORMATS["int4"], weights(6, 32), correlated(32)
    dead = torch.tensor([0, 9, 31])
    alive = torch.tensor([k for k in range(32) if k not in dead.tolist()])
    moment[dead] = moment[:, dead] = 0.0
    scale = search_scale(weight.view(6, 1, 32), format, torch.float32)
    codes = gptq(weight, scale, format, moment)
    nearest = round_to_nearest(weight.view(6, 1, 32), scale, format).view(6, 32)
    assert torch.equal(codes[:, dead], nearest[:, dead])
    # The mean diagonal counts the dead ones: damping that makes up for it gives the rest by itself.
    alone = gptq(weight[:, alive], scale, format, moment[alive][:, alive], damping=0.01 * 29 / 32)
    assert torch.equal(codes[:, alive], alone)


def test_factor_is_that_of_the_damped_inverse_and_damping_rises() -> None:
    moment = correlated(24).double()
    factor = inverse_factor(moment, 0.01)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(damped))
    indefinite = moment.clone()  # by more than the first damping: as sums in float32 can leave it
    value, vector = torch.linalg.eigh(moment)
    indefinite -= (value[0] + 0.05 * moment.diagonal().mean()) * torch.outer(vector[:, 0], vector[:, 0])
    factor = inverse_factor(indefinite, 0.01)
    raised = indefinite + 0.1 * indefinite.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(raised))


def test_refusals_name_the_layer() -> None:
    format, weight = FORMATS["int4"], weights(4, 16)
    scale = search_scale(weight.view(4, 1, 16), format, torch.float32)
    moment = correlated(16)
    with pytest.raises(InputError, match=r"fc: second moment of its inputs is \[16, 16\], expected \[8, 8\]"):
        gptq(weight[:, :8], scale, format, moment, name="fc")
    for bad, text in ((float("nan"), "NaN or infinite"), (0.0, "all zero")):
        with pytest.raises(InputError, match=f"fc: its inputs are {text} in calibration"):
            gptq(weight, scale, format, torch.full((16, 16), bad), name="fc")
    impossible = torch.eye(16)
    impossible[0, 1] = impossible[1, 0] = 1e9
    with pytest.raises(StageError, match=r"fc: .* not positive semidefinite"):
        gptq(weight, scale, format, impossible, name="fc")


def test_refitted_scales_solve_the_normal_equations() -> None:
    format, weight, moment = FORMATS["int4"], weights(5, 48), correlated(48)
    groups = weight.view(5, 3, 16)
    scale = search_scale(groups, format, torch.float32)
    values = FittedWeight(round_to_nearest(groups, scale, format).view(5, 48), scale, format).values()
    values[2, 16:32] = 0.0  # a group that nothing is known about keeps its scale
    refitted = refit_scale(weight, values, scale, moment)
    root = np.linalg.cholesky(moment.double().numpy())
    for row in range(5):
        used = [g for g in range(3) if values[row, 16 * g : 16 * g + 16].any()]
        parts = np.zeros((48, len(used)))
        for place, g in enumerate(used):
            parts[16 * g : 16 * g + 16, place] = values[row, 16 * g : 16 * g + 16]
        best, *_ = np.linalg.lstsq(root.T @ parts, root.T @ weight[row].double().numpy(), rcond=None)
        assert refitted[row, used].numpy() == pytest.approx(best, rel=1e-4)
    assert refitted[2, 1] == scale[2, 1]


def test_refitted_scales_are_never_worse_as_stored() -> None:
    format, moment = FORMATS["int4"], correlated(64, rank=8)
    weight = weights(20, 64)
    groups = weight.view(20, 4, 16)
    scale = search_scale(groups, format, torch.float16)
    values = FittedWeight(gptq(weight, scale, format, moment), scale, format).values().view(20, 4, 16)
    refitted = refit_scale(weight, values.flatten(1), scale, moment)
    assert refitted.dtype == torch.float16
    for row in range(20):
        part = slice(row, row + 1)
        before, after = (
            error_of(weight[part], (values[part] * s[part].float()[..., None]).flatten(1), moment)
            for s in (scale, refitted)
        )
        assert after <= before
