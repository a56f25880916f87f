"""The low-bit layer: buffers, state dict, dtypes, export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ditpress.errors import InputError
from ditpress.kernels.formats import FORMATS, get_format
from ditpress.kernels.linear import Activation, QuantizedLinear, scale_dtype
from ditpress.kernels.packing import pack
from ditpress.kernels.random_weights import random_linear


def make_layer(activation: str = "int8", group: int = 16, bias: bool = True) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (10, 32), generator=generator).to(torch.uint8)
    scale = torch.rand(10, 32 // group, generator=generator).to(scale_dtype(group, 32))
    offset = torch.randn(10, generator=generator) if bias else None
    return QuantizedLinear(pack(codes, 16), scale, "int4", 32, offset, activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [16, 32])
def test_forward_is_a_linear_on_the_dequantized_weight(group: int) -> None:
    layer = make_layer("none", group)
    x = torch.randn(3, 5, 32)
    expected = nn.functional.linear(
        x.double(), layer.dequantize().double(), None if layer.bias is None else layer.bias.double()
    )
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_int8_activations_stay_within_half_a_step() -> None:
    layer = make_layer("int8")
    x = torch.randn(4, 32)
    weight = layer.dequantize().double()
    assert layer.bias is not None
    exact = x.double() @ weight.T + layer.bias.double()
    step = x.abs().amax(1, keepdim=True).double() / 127
    bound = 0.5001 * step * weight.abs().sum(1) + 1e-5
    assert ((layer(x).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_round_trip(bias: bool) -> None:
    layer = make_layer(bias=bias)
    twin = QuantizedLinear.empty(32, 10, "int4", 16, "int8", bias=bias)
    assert set(twin.state_dict()) == {"codes", "scale", "codebook"} | ({"bias"} if bias else set())
    x = torch.randn(2, 32)
    twin(x)  # packs the empty weight; loading must be seen afterwards
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))


def test_attributes_and_size() -> None:
    layer = make_layer()
    assert (layer.in_features, layer.out_features, layer.group_size) == (32, 10, 16)
    assert (layer.format, layer.activation) == ("int4", "int8")
    # codes, float16 scales, 16 codebook bytes, float32 bias
    assert layer.stored_bits() == 10 * 32 * 4 + 10 * 2 * 16 + 16 * 8 + 10 * 32
    assert "format=int4, group_size=16" in repr(layer)


def test_casting_the_model_keeps_the_stored_dtypes() -> None:
    layer = make_layer()
    x = torch.randn(2, 32)
    before, tensors = layer(x), {k: v.clone() for k, v in layer.state_dict().items()}
    model = nn.Sequential(layer).half().to(torch.bfloat16).float()
    assert torch.equal(model(x), before)
    for key, value in layer.state_dict().items():
        assert value.dtype == tensors[key].dtype
        assert torch.equal(value, tensors[key])
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16


def test_meta_device_and_empty() -> None:
    layer = QuantizedLinear.empty(33, 7, get_format("int4"), 11, "none", bias=True, device="meta")
    assert layer.codes.shape == (7, 17)
    assert layer.scale.dtype == torch.float16
    assert layer(torch.empty(2, 33, device="meta")).shape == (2, 7)
    with pytest.raises(InputError, match="must divide in_features=33"):
        QuantizedLinear.empty(33, 7, "int4", 10, "none", bias=True)


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_comes_back_from_its_state_dict(name: str) -> None:
    layer = random_linear(36, 10, name, 12, "int8", fold_scales=True)
    twin = QuantizedLinear.empty(36, 10, name, 12, "int8", bias=True, fold_scales=True)
    assert torch.equal(twin(torch.randn(2, 36)), torch.zeros(2, 10))
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 36)
    assert torch.equal(twin(x), layer(x))
    stored = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert layer.stored_bits() == 8 * stored


def test_stored_bits_of_trits_and_vectors() -> None:
    # 100 trits in 20 bytes, one float32 scale, 3 bytes of codebook, no bias
    assert random_linear(100, 7, "ternary", 100, bias=False).stored_bits() == 8 * (7 * 20 + 7 * 4 + 3)
    # 50 codes of 6 bits in 38 bytes; 64 entries of two bytes
    assert random_linear(100, 7, "vq-64x2", 100, bias=False).stored_bits() == 8 * (7 * 38 + 7 * 4 + 128)


def test_folded_layers_dequantize_to_what_they_multiply_by() -> None:
    exact, folded = (random_linear(64, 30, "int4", 16, fold_scales=fold) for fold in (False, True))
    x = torch.randn(3, 64).sign()  # int8 activations hold these exactly
    assert not torch.equal(exact.dequantize(), folded.dequantize())
    for layer in (exact, folded):
        expected = x.double() @ layer.dequantize().double().T + layer.bias.double()
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    single = random_linear(64, 30, "int4", 16, "none", fold_scales=True)  # float activations: no folding
    assert torch.equal(single.dequantize(), exact.dequantize())


def test_whose_codebook() -> None:
    codes, scale = torch.zeros(3, 9, dtype=torch.uint8), torch.ones(3, 1)
    with pytest.raises(InputError, match=r"vq-256x4 has no fixed codebook: .* torch.int8 \[256, 4\]"):
        QuantizedLinear(codes, scale, "vq-256x4", 36)
    with pytest.raises(InputError, match=r"codebook of format vq-256x4 is torch.int8 \[256, 2\], expected"):
        QuantizedLinear(codes, scale, "vq-256x4", 36, codebook=torch.zeros(256, 2, dtype=torch.int8))
    with pytest.raises(InputError, match="int4 has a fixed codebook"):
        QuantizedLinear(codes, scale, "int4", 18, codebook=torch.zeros(16, 1, dtype=torch.int8))
    with pytest.raises(InputError, match="fp4 has 3 tables: give table"):
        QuantizedLinear(codes, scale, "fp4", 18)
    with pytest.raises(InputError, match="int4 has one table: leave table out"):
        QuantizedLinear(codes, scale, "int4", 18, table=torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(InputError, match="fold_scales is 'yes', expected true or false"):
        QuantizedLinear.empty(36, 3, "int4", 12, "int8", bias=True, fold_scales="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["int8", "none", "uint4"])
@pytest.mark.parametrize("format", ["int4", "fp4"])
def test_export_keeps_one_op(format: str, activation: Activation) -> None:
    layer = random_linear(32, 10, format, 16, activation)
    x = torch.randn(3, 4, 32)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.ditpress.qlinear.default]
    other = torch.randn(5, 4, 32)
    assert torch.equal(program.module()(other), layer(other))
