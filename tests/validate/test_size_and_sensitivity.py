import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack
from ditpress.validate.environment import cpu_name, environment
from ditpress.validate.paired import OutputSqnr
from ditpress.validate.sensitivity import LayerError, details, layer_errors
from ditpress.validate.size import size_of, stored_modules


class Block(nn.Module):
    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.emb = embedder
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64, bias=False)
        self.table = nn.Parameter(torch.zeros(6, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x + self.emb(x))))


class Toy(nn.Module):
    """Two blocks that share one embedder, with a saved and an unsaved buffer."""

    def __init__(self) -> None:
        super().__init__()
        embedder = nn.Linear(64, 64)
        self.blocks = nn.ModuleList([Block(embedder), Block(embedder)])
        self.register_buffer("saved", torch.zeros(10, dtype=torch.int32))
        self.register_buffer("unsaved", torch.zeros(1000), persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        for block in self.blocks:
            x = block(x)
        return (x,)


def quantize_int8(linear: nn.Linear) -> QuantizedLinear:
    scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
    codes = (torch.round(linear.weight.detach() / scale) + 128).to(torch.uint8)
    bias = None if linear.bias is None else linear.bias.detach().clone()
    return QuantizedLinear(pack(codes, 256), scale, "int8", linear.in_features, bias, "none")


@pytest.fixture
def toys() -> tuple[Toy, Toy]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = Toy().half().float()  # as loaded from a 16-bit checkpoint
    compressed = Toy()
    compressed.load_state_dict(original.state_dict())
    for block in compressed.blocks:
        block.up = quantize_int8(block.up)
    return original, compressed


EMBEDDER, UP, DOWN, TABLE = 64 * 64 + 64, 64 * 128 + 128, 128 * 64, 6 * 64


def test_sizes_are_counted_by_hand(toys: tuple[Toy, Toy]) -> None:
    original, compressed = toys
    size = size_of(original, compressed, onnx_bytes=12345)
    parameters = EMBEDDER + 2 * (UP + DOWN + TABLE)
    assert size.parameters == parameters == sum(p.numel() for p in original.parameters())
    assert size.original_bytes == 2 * parameters + 4 * 10
    # int8 codes, one float32 scale per row, the 256-entry int8 codebook, float32 bias
    quantized = 64 * 128 + 4 * 128 + 256 + 4 * 128
    assert size.compressed_bytes == 2 * (EMBEDDER + 2 * (DOWN + TABLE)) + 4 * 10 + 2 * quantized
    assert size.effective_bits == pytest.approx(8 * size.compressed_bytes / parameters)
    assert size.onnx_bytes == 12345
    assert size.layers["blocks.0.up"] == size.layers["blocks.1.up"] == "int8"
    assert size.layers["blocks.0.emb"] == size.layers["blocks.0.down"] == "fp16"
    assert "blocks.1.emb" not in size.layers  # shared with block 0, stored once


def test_float_bits_is_what_the_checkpoint_stores(toys: tuple[Toy, Toy]) -> None:
    original, _ = toys
    stored = stored_modules(original, float_bits=32)
    assert stored["blocks.0.down"].bits == 32 * DOWN
    assert stored["blocks.0.down"].format == "fp32"


def test_what_float16_cannot_hold_counts_in_its_own_type(toys: tuple[Toy, Toy]) -> None:
    original, _ = toys
    original.blocks[1].down.weight.data[0, 0] = 1 + 2**-20
    stored = stored_modules(original)
    assert (stored["blocks.1.down"].format, stored["blocks.1.down"].bits) == ("fp32", 32 * DOWN)
    assert (stored["blocks.0.down"].format, stored["blocks.0.down"].bits) == ("fp16", 16 * DOWN)
    assert stored_modules(original.to("meta"))["blocks.1.down"].bits == 16 * DOWN


def test_a_tied_parameter_counts_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)})
    model["a"].weight.data.fill_(1)
    model["b"].weight = model["a"].weight
    assert sum(stored.bits for stored in stored_modules(model).values()) == 16 * 64


@dataclass
class Call:
    timestep: float
    kwargs: dict[str, Any]


def test_layer_errors_against_the_definition(toys: tuple[Toy, Toy]) -> None:
    original, compressed = toys
    generator = torch.Generator().manual_seed(1)
    calls = [Call(float(t), {"x": torch.randn(3, 64, generator=generator)}) for t in (2, 1)]
    errors = layer_errors(original, compressed, calls)
    assert set(errors) == {"blocks.0.up", "blocks.1.up"}

    def weight_and_change(block: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = original.blocks[block].up.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        rounded = torch.round(weight / scale).double() * scale.double()
        return weight.double(), rounded - weight.double()

    weight, change = weight_and_change(1)
    expected = math.sqrt(float((change**2).sum()) / float((weight**2).sum()))
    assert errors["blocks.1.up"][0] == pytest.approx(expected, rel=1e-5)

    weight, change = weight_and_change(0)
    signal = noise = 0.0
    by_timestep = []
    for call in calls:
        with torch.no_grad():
            x = (
                call.kwargs["x"] + original.blocks[0].emb(call.kwargs["x"])
            ).double()  # what blocks.0.up reads
        energy = float(((x @ weight.T + original.blocks[0].up.bias.detach().double()) ** 2).sum())
        error = float(((x @ change.T) ** 2).sum())
        by_timestep.append((call.timestep, pytest.approx(10 * math.log10(energy / error), abs=0.01)))
        signal, noise = signal + energy, noise + error
    assert errors["blocks.0.up"][1] == pytest.approx(10 * math.log10(signal / noise), abs=0.01)
    assert errors["blocks.0.up"].by_timestep == by_timestep


def test_layer_errors_leave_no_hooks_and_work_without_calls(toys: tuple[Toy, Toy]) -> None:
    original, compressed = toys
    errors = layer_errors(original, compressed, [])
    assert errors["blocks.0.up"][0] > 0
    assert errors["blocks.0.up"][1] is None
    assert all(not module._forward_hooks for module in original.modules())


def test_layer_errors_need_the_float_layers(toys: tuple[Toy, Toy]) -> None:
    _, compressed = toys
    with pytest.raises(InputError, match=r"blocks\.0\.up has no float Linear 64 -> 128"):
        layer_errors(compressed, compressed, [])


def test_details_join_sizes_and_errors(toys: tuple[Toy, Toy]) -> None:
    original, compressed = toys
    sqnr = OutputSqnr(total_db=20.0, by_timestep={900.0: 25.0, 100.0: 18.0})
    result = details(
        original, compressed, errors={"blocks.0.up": LayerError(0.01, 40.0, [(900.0, 41.0)])}, sqnr=sqnr
    )
    layers = {layer.name: layer for layer in result.layers}
    assert layers["blocks.0.up"].weight_error == 0.01
    assert [(p.timestep, p.sqnr_db) for p in layers["blocks.0.up"].timesteps] == [(900.0, 41.0)]
    assert layers["blocks.0.up"].original_bytes == 2 * UP
    assert layers["blocks.0.down"].weight_error is None
    size = size_of(original, compressed)
    assert sum(layer.compressed_bytes for layer in result.layers) == size.compressed_bytes
    assert sum(layer.original_bytes for layer in result.layers) == size.original_bytes
    assert [(point.timestep, point.sqnr_db) for point in result.timesteps] == [(100.0, 18.0), (900.0, 25.0)]


def test_environment_names_versions_and_processor(tmp_path: Path) -> None:
    here = environment()
    assert here.torch == torch.__version__
    assert here.threads == torch.get_num_threads()
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU 9000: turbo\n")
    assert cpu_name(cpuinfo) == "Fast CPU 9000: turbo"
    assert cpu_name(tmp_path / "missing")
