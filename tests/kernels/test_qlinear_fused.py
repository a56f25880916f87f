"""The fused op against torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from qlinear_cases import Case, make_case, weights64
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels.qlinear import qlinear
from ditpress.kernels.qlinear_fused import qlinear_fused
from ditpress.kernels.reference_fused import gelu_tanh, layer_norm_modulate

OP = torch.ops.ditpress.qlinear_fused.default

BATCH, TOKENS, K, N = 3, 5, 48, 11


@pytest.fixture
def case() -> Case:
    case = make_case("int4", BATCH * TOKENS, N, 16, 3, half=True)
    case.x = case.x.view(BATCH, TOKENS, K)
    return case


def around(seed: int = 7) -> dict[str, Tensor]:
    """The tensors of the prologue and the epilogue, different for every sample."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "shift": normal(BATCH, 1, K),
        "modulation": normal(BATCH, 1, K),
        "gate": normal(BATCH, 1, N),
        "residual": normal(BATCH, TOKENS, N),
    }


GELU_BOUND = 1.5e-5  # of max(1, |argument|): what kernels are allowed


def expected(case: Case, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Everything in float64, with torch's own functions; and the argument of a GELU."""
    x = case.x.double()
    if "shift" in given:
        x = F.layer_norm(x, (K,), eps=1e-6) * (1 + given["modulation"].double()) + given["shift"].double()
    assert case.bias is not None
    linear = y = x @ torch.from_numpy(weights64(case)).T + case.bias.double()
    if given.get("gelu"):
        y = F.gelu(y, approximate="tanh")
    if "gate" in given:
        y = given["gate"].double() * y + given["residual"].double()
    return y, linear


@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("epilogue", ["", "gelu", "gate"])
def test_float_activations_against_float64(case: Case, prologue: bool, epilogue: str) -> None:
    tensors = around()
    given: dict[str, Any] = {}
    if prologue:
        given |= {"shift": tensors["shift"], "modulation": tensors["modulation"]}
    if epilogue == "gate":
        given |= {"gate": tensors["gate"], "residual": tensors["residual"]}
    if epilogue == "gelu":
        given["gelu"] = True
    y = qlinear_fused(*case.arguments("none"), **given)
    exact, linear = expected(case, given)
    bound = (
        1e-4 + 1e-4 * exact.abs() + (GELU_BOUND * linear.abs().clamp(min=1.0) if epilogue == "gelu" else 0)
    )
    assert bool(((y - exact).abs() <= bound).all())


@pytest.mark.parametrize("fold", [False, True])
def test_int8_activations_are_those_of_the_normalised_input(case: Case, fold: bool) -> None:
    """The op rounds what comes out of the norm; the norm itself is checked against float64 below."""
    tensors = around()
    x = layer_norm_modulate(case.x, tensors["shift"], tensors["modulation"], 1e-6)
    linear = qlinear(x, *case.arguments("int8")[1:], fold)
    y = qlinear_fused(*case.arguments("int8"), fold, **tensors)
    gated = tensors["gate"].double() * linear.double() + tensors["residual"].double()
    torch.testing.assert_close(y.double(), gated, rtol=1e-5, atol=1e-5)
    del tensors["gate"], tensors["residual"]
    y = qlinear_fused(*case.arguments("int8"), fold, gelu=True, **tensors)
    exact = F.gelu(linear.double(), approximate="tanh")
    assert bool(((y - exact).abs() <= GELU_BOUND * linear.abs().clamp(min=1.0)).all())
    assert torch.equal(qlinear_fused(*case.arguments("int8"), fold), qlinear(*case.arguments("int8"), fold))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_layer_norm_keeps_its_accuracy_far_from_zero(offset: float) -> None:
    tensors = around()
    x = torch.randn(BATCH, TOKENS, K, generator=torch.Generator().manual_seed(1)) + offset
    y = layer_norm_modulate(x, tensors["shift"], tensors["modulation"], 1e-6)
    exact = F.layer_norm(x.double(), (K,), eps=1e-6)
    exact = exact * (1 + tensors["modulation"].double()) + tensors["shift"].double()
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-6 + 1e-6 * offset)


def test_gelu_against_float64() -> None:
    y = torch.linspace(-12, 12, 4001)
    exact = F.gelu(y.double(), approximate="tanh")
    torch.testing.assert_close(gelu_tanh(y).double(), exact, rtol=1e-6, atol=1e-6)


def test_shapes_that_mean_the_same(case: Case) -> None:
    tensors = around()
    flat = {name: t.squeeze(1) if t.shape[1] == 1 else t for name, t in tensors.items()}
    y = qlinear_fused(*case.arguments("int8"), **tensors)
    assert torch.equal(qlinear_fused(*case.arguments("int8"), **flat), y)
    one = {name: t[:1] if t.shape[1] == 1 else t for name, t in tensors.items()}
    every = {name: t[:1].expand(BATCH, -1, -1) if t.shape[1] == 1 else t for name, t in tensors.items()}
    shared = qlinear_fused(*case.arguments("int8"), **one)
    assert torch.equal(shared, qlinear_fused(*case.arguments("int8"), **every))
    image = case.x.view(BATCH, 1, TOKENS, K)
    tensors["residual"] = tensors["residual"].view(BATCH, 1, TOKENS, N)
    rest = case.arguments("int8")[1:]
    assert torch.equal(qlinear_fused(image, *rest, **tensors), y.view(BATCH, 1, TOKENS, N))
    vectors = {name: flat[name] for name in ("shift", "modulation")}
    assert torch.equal(
        qlinear_fused(case.x[:, 0], *rest, **vectors), qlinear_fused(case.x, *rest, **vectors)[:, 0]
    )
    empty = {name: tensor[:0] for name, tensor in around().items()}
    assert qlinear_fused(case.x[:0], *rest, **empty).shape == (0, TOKENS, N)


@pytest.mark.parametrize("gelu", [False, True])
def test_opcheck(case: Case, gelu: bool) -> None:
    t = around()
    epilogue = (None, None) if gelu else (t["gate"], t["residual"])
    torch.library.opcheck(
        OP, (*case.arguments("int8"), True, None, t["shift"], t["modulation"], 1e-6, gelu, *epilogue)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": None}, "shift and modulation together: give both or none"),
        ({"residual": None}, "gate and residual together: give both or none"),
        ({"gelu": True}, "not in both: leave one out"),
        ({"epsilon": -1.0}, "epsilon is -1.0, expected 0 or more"),
        ({"shift": torch.zeros(BATCH, 1, K - 1)}, r"shift is torch.float32 \[3, 1, 47\]"),
        ({"modulation": torch.zeros(BATCH, TOKENS, K)}, r"modulation is torch.float32 \[3, 5, 48\]"),
        ({"modulation": torch.zeros(BATCH + 1, 1, K)}, r"modulation is .* B that of the input"),
        ({"gate": torch.zeros(BATCH, N, dtype=torch.float64)}, r"gate is torch.float64 \[3, 11\]"),
        (
            {"residual": torch.zeros(BATCH, TOKENS, N + 1)},
            r"residual is .* torch.float32 \[3, 5, 11\]",
        ),
        ({"bias": torch.zeros(N + 1)}, "bias is"),
        ({"codes": torch.zeros(N, 1, dtype=torch.uint8)}, "codes are"),
    ],
)
def test_bad_arguments_are_named(case: Case, change: dict[str, Any], message: str) -> None:
    names = ("x", "codes", "scale", "codebook", "bias", "activation")
    arguments: dict[str, Any] = dict(zip(names, case.arguments("int8"), strict=True))
    arguments |= {"fold_scales": False, "table": None, "epsilon": 1e-6, "gelu": False, **around(), **change}
    for device in ("cpu", "meta"):
        on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with pytest.raises(InputError, match=message):
            OP(**on_device)
