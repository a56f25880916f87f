"""Walking block by block gives what the whole transformer gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_dit import dit_inputs, tiny_dit, tiny_flux, tiny_pixart, tiny_sd3
from torch import Tensor, nn

from ditpress.calibrate import BlockInputs, Call
from ditpress.errors import InputError, StageError
from ditpress.load import anatomy_of

Made = tuple[nn.Module, dict[str, Any]]


def made_dit() -> Made:
    model = tiny_dit(num_layers=3)
    return model, dict(dit_inputs(model))


FAMILIES = [made_dit, tiny_pixart, tiny_sd3, tiny_flux]


def calls_of(inputs: dict[str, Any], count: int = 3) -> list[Call]:
    """Calls with hidden states and timesteps of their own."""
    generator = torch.Generator().manual_seed(11)
    shape = inputs["hidden_states"].shape
    return [
        Call(
            float(index),
            inputs
            | {
                "hidden_states": torch.randn(shape, generator=generator),
                "timestep": inputs["timestep"] * (index + 1) // 2
                if inputs["timestep"].dtype == torch.int64
                else inputs["timestep"] / (index + 1),
            },
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("make", FAMILIES)
def test_the_walk_ends_where_the_transformer_ends(make: Callable[[], Made]) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    calls = calls_of(inputs)
    lists = anatomy_of(model).block_lists(model)
    assert lists[0] == "transformer_blocks"
    expected = [model(**call.kwargs).sample for call in calls]
    for block_list in lists:
        blocks = getattr(model, block_list)
        truth: dict[int, list[Any]] = {index: [] for index in range(len(blocks))}
        handles = [
            block.register_forward_hook(lambda m, a, out, outs=truth[index]: outs.append(out))
            for index, block in enumerate(blocks)
        ]
        for call in calls:
            model(**call.kwargs)
        for handle in handles:
            handle.remove()
        inputs_of = BlockInputs.record(model, block_list, calls)
        assert inputs_of.timesteps == [0.0, 1.0, 2.0]
        for index, block in enumerate(blocks):
            for call in range(len(calls)):
                given = truth[index][call]
                for found, value in zip(
                    inputs_of.call(block, call), (given,) if isinstance(given, Tensor) else given, strict=True
                ):
                    assert (found is None and value is None) or torch.equal(found, value)
            inputs_of.run(block)
        # The output of the walk in the place of the last block's: the transformer gives its own output.
        last = inputs_of.arguments
        place = iter(range(len(calls)))

        def put(module: nn.Module, args: Any, out: Any, last: Any = last, place: Any = place) -> Any:
            found = last[next(place)]
            hidden = found["hidden_states"]
            return hidden if isinstance(out, Tensor) else (found["encoder_hidden_states"], hidden)

        handle = blocks[-1].register_forward_hook(put)
        for call, output in zip(calls, expected, strict=True):
            assert torch.equal(model(**call.kwargs).sample, output)
        handle.remove()


def test_the_next_block_reads_what_the_changed_block_gives() -> None:
    model, inputs = made_dit()
    calls = calls_of(inputs)
    walk = BlockInputs.record(model, "transformer_blocks", calls)
    teacher = walk.fork()
    seen: list[Tensor] = []
    layer = model.transformer_blocks[0].ff.net[2]
    handle = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    walk.run(model.transformer_blocks[0], advance=False)
    assert len(seen) == len(calls)
    handle.remove()
    teacher.run(model.transformer_blocks[0])
    layer.weight.mul_(0.5)
    walk.run(model.transformer_blocks[0])
    for index, call in enumerate(calls):
        read: list[Tensor] = []
        handle = model.transformer_blocks[1].register_forward_pre_hook(
            lambda m, args, r=read: r.append(args[0])
        )
        model(**call.kwargs)
        handle.remove()
        assert torch.equal(walk.arguments[index]["hidden_states"], read[0])
        assert not torch.equal(teacher.arguments[index]["hidden_states"], read[0])


def test_one_block_of_every_call_is_all_that_is_kept() -> None:
    model, inputs = made_dit()
    walk = BlockInputs.record(model, "transformer_blocks", calls_of(inputs))

    def held() -> int:
        return sum(
            value.numel()
            for arguments in walk.arguments
            for value in arguments.values()
            if isinstance(value, Tensor)
        )

    before = held()
    for block in model.transformer_blocks:
        walk.run(block)
        assert held() == before


def test_what_cannot_be_walked_is_named() -> None:
    model, inputs = made_dit()
    calls = calls_of(inputs)
    with pytest.raises(InputError, match="blocks: not a list of blocks in DiTTransformer2DModel"):
        BlockInputs.record(model, "blocks", calls)
    with pytest.raises(InputError, match="without recorded calls"):
        BlockInputs.record(model, "transformer_blocks", [])
    sd3, joint = tiny_sd3()
    skipping = [Call(1.0, joint | {"skip_layers": [1]})]
    with pytest.raises(InputError, match=r"SD3Transformer2DModel: .* skip_layers"):
        BlockInputs.record(sd3, "transformer_blocks", skipping)
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *sd3.modules()])

    class Three(nn.Module):
        def forward(self, hidden_states: Tensor, **rest: Any) -> tuple[Tensor, ...]:
            return (hidden_states,) * 3

    walk = BlockInputs.record(model, "transformer_blocks", calls)
    with pytest.raises(StageError, match="Three: returns 3 values"):
        walk.run(Three())
