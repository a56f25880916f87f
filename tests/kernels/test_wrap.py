"""Wrappers around linears, against the equations in their docstrings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.random_weights import random_linear
from ditpress.kernels.transforms import ChannelScale, Hadamard, Shift, rotate_weight
from ditpress.kernels.wrap import (
    LowRankLinear,
    NormedLinear,
    TransformedLinear,
    Wrapper,
    input_weight,
    layers_of,
    main_linear,
    wrap_empty,
)

K, N, RANK = 24, 10, 3


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def linear(generator: torch.Generator, inputs: int = K, outputs: int = N, bias: bool = True) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(generator=generator)
    return made


def branch(generator: torch.Generator, inner: nn.Module) -> LowRankLinear:
    return LowRankLinear(
        inner, linear(generator, K, RANK, bias=False), linear(generator, RANK, N, bias=False)
    )


def nest(generator: torch.Generator) -> TransformedLinear:
    """Every kind at once."""
    factors = torch.rand(K, generator=generator) + 0.5
    inner = TransformedLinear(ChannelScale(factors), branch(generator, linear(generator)))
    return TransformedLinear(
        Hadamard.random((12, 2), K, generator),
        TransformedLinear(Shift(0.25), NormedLinear(inner, torch.rand(N, generator=generator), 1e-5)),
    )


def test_low_rank_adds_its_branch(generator: torch.Generator) -> None:
    wrapped = branch(generator, linear(generator))
    x = torch.randn(4, 7, K, generator=generator)
    y = x.double() @ wrapped.linear.weight.double().T + wrapped.linear.bias.double()
    y += x.double() @ wrapped.down.weight.double().T @ wrapped.up.weight.double().T
    torch.testing.assert_close(wrapped(x), y.float(), rtol=1e-5, atol=1e-5)
    assert (wrapped.in_features, wrapped.out_features) == (K, N)


def test_a_transform_comes_before_and_its_weight_makes_up_for_it(generator: torch.Generator) -> None:
    x = torch.randn(4, 7, K, generator=generator, dtype=torch.float64)
    plain = linear(generator).double()
    expected = plain(x)
    weight, bias = plain.weight.clone(), plain.bias.clone()
    factors = torch.rand(K, generator=generator) + 0.5
    hadamard = Hadamard.random((12, 2), K, generator)
    for transform, new_weight, new_bias in (
        (ChannelScale(factors), weight / factors, bias),
        (Shift(0.17), weight, bias - Shift(0.17).value.double() * weight.sum(dim=1)),
        (hadamard, rotate_weight(weight, hadamard), bias),
    ):
        plain.weight.copy_(new_weight)
        plain.bias.copy_(new_bias)
        wrapped = TransformedLinear(transform, plain)
        torch.testing.assert_close(wrapped(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(input_weight(wrapped), weight, rtol=1e-12, atol=1e-12)


def test_normed_is_rms_norm_times_gain(generator: torch.Generator) -> None:
    gain = torch.rand(N, generator=generator)
    wrapped = NormedLinear(linear(generator), gain, 1e-3)
    x = torch.randn(5, K, generator=generator)
    expected = torch.nn.functional.rms_norm(wrapped.linear(x).double(), (N,), gain.double(), 1e-3)
    torch.testing.assert_close(wrapped(x), expected.float(), rtol=1e-5, atol=1e-6)


def test_nested_weights_are_what_the_input_sees(generator: torch.Generator) -> None:
    wrapped = nest(generator).double()
    wrapped.linear.linear = wrapped.linear.linear.linear  # without the norm the whole is affine
    x = torch.eye(K, dtype=torch.float64)
    columns = wrapped(x) - wrapped(torch.zeros(1, K, dtype=torch.float64))
    torch.testing.assert_close(input_weight(wrapped), columns.T, rtol=1e-10, atol=1e-10)


def test_layers_from_the_outside_to_the_main_linear(generator: torch.Generator) -> None:
    wrapped = nest(generator)
    kinds = [type(module) for module in layers_of(wrapped)]
    assert kinds == [TransformedLinear] * 2 + [NormedLinear, TransformedLinear, LowRankLinear, nn.Linear]
    assert main_linear(wrapped) is wrapped.linear.linear.linear.linear.linear
    with pytest.raises(InputError, match="GELU: expected a linear"):
        main_linear(nn.GELU())


def test_casting_the_model_keeps_the_numbers(generator: torch.Generator) -> None:
    wrapped = nest(generator)
    before = {name: buffer.clone() for name, buffer in wrapped.named_buffers()}
    wrapped.bfloat16()
    assert wrapped.linear.linear.linear.linear.linear.weight.dtype == torch.bfloat16
    for name, buffer in wrapped.named_buffers():
        assert buffer.dtype == before[name].dtype, name
        assert torch.equal(buffer, before[name]), name
    assert wrapped(torch.ones(2, K, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_descriptions_make_the_same_structure(generator: torch.Generator) -> None:
    wrapped = nest(generator)
    *wrappers, inner = layers_of(wrapped)
    made: nn.Module = linear(generator)
    for wrapper in reversed(wrappers):
        assert isinstance(wrapper, Wrapper)
        made = wrap_empty(made, wrapper.describe())
    state = wrapped.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in made.state_dict().items()} == {
        name: (t.shape, t.dtype) for name, t in state.items()
    }
    made.load_state_dict(state)
    x = torch.randn(3, K, generator=generator)
    assert torch.equal(made(x), wrapped(x))
    assert isinstance(inner, nn.Linear)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            {"kind": "high-rank"},
            "unknown wrapper 'high-rank'; expected one of low-rank, transformed, subspace, normed",
        ),
        ({"kind": "low-rank", "depth": 2}, "wrapper low-rank: its settings do not belong to it"),
        ({"kind": "transformed", "transform": {"kind": "fourier"}}, "unknown transform 'fourier'"),
        ({"kind": "transformed", "transform": {"kind": "hadamard", "factors": 16}}, "does not divide the 24"),
    ],
)
def test_damaged_descriptions_are_named(
    generator: torch.Generator, description: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        wrap_empty(linear(generator), description)


def test_shapes_that_do_not_fit_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(InputError, match=r"low-rank branch 24 -> 3, 4 -> 10 does not fit .* 24 -> 10"):
        LowRankLinear(linear(generator), linear(generator, K, 3), linear(generator, 4, N))
    with pytest.raises(InputError, match=r"gain is torch\.float32 \[24\], expected torch\.float32 \[10\]"):
        NormedLinear(linear(generator), torch.ones(K))


def test_low_bit_linears_take_every_place(generator: torch.Generator) -> None:
    parts = [
        random_linear(*shape, "int8", shape[0], "int8", bias=False, seed=0)
        for shape in ((K, N), (K, 4), (4, N))
    ]
    wrapped = LowRankLinear(*parts)
    x = torch.randn(6, K, generator=generator)
    assert torch.equal(wrapped(x), parts[0](x) + parts[2](parts[1](x)))
    expected = parts[0].dequantize() + parts[2].dequantize() @ parts[1].dequantize()
    torch.testing.assert_close(input_weight(wrapped), expected)
    assert isinstance(main_linear(wrapped), QuantizedLinear)
