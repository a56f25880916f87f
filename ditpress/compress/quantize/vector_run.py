"""The way of a transformer through vector quantization: block after block, then end to end.

Held at once beside the model: the teacher's outputs, the hidden states of all calls twice (the teacher's path
and the student's), and one block's float weights with their candidates. Blocks that are done keep codes
(4 bytes for d weights) and codebooks only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ditpress.calibrate.blocks import BlockInputs, device_of
from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import Call
from ditpress.calibrate.statistics import Want
from ditpress.compress.distill.trainer import Training, distill, teacher_outputs
from ditpress.compress.quantize.layer import SECOND_MOMENT
from ditpress.compress.quantize.student import Rates, harden, parameter_groups
from ditpress.compress.quantize.vector import channel_weights, fit_vectors
from ditpress.compress.quantize.vector_blocks import BlockTuning, calibrate_block
from ditpress.compress.quantize.vector_linear import VectorLinear
from ditpress.compress.quantize.walk import watched
from ditpress.kernels.formats import Format
from ditpress.kernels.linear import Activation
from ditpress.load.modules import replace_module
from ditpress.progress import track

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser

log = logging.getLogger(__name__)

# From so many weights on, blocks run again in the backward pass: their decoded weights and activations
# would take gigabytes.
RECOMPUTE_FROM = 100_000_000
# What blocks of one and of two streams give, in order; see BlockInputs.
_STREAMS = {1: ("hidden_states",), 2: ("encoder_hidden_states", "hidden_states")}


@dataclass(frozen=True)
class VectorLayer:
    """How one linear will be stored, and what format its inputs take when it runs."""

    format: Format
    activation: Activation


@dataclass(frozen=True)
class VectorPlan:
    """What to do: the layers by full name, and the settings of the stage ``vq`` of the same names."""

    layers: Mapping[str, VectorLayer]
    rounding: Literal["nearest", "gptq"]
    weigh_channels: bool
    iterations: int
    blocks: BlockTuning | None
    finetune: Training | None
    seed: int

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics of a layer's input that its codebook is fitted with."""
        return (SECOND_MOMENT,) if self.weigh_channels or self.rounding == "gptq" else ()


def compress(denoiser: Denoiser, plan: VectorPlan, calls: Sequence[Call]) -> None:
    """Replace the planned linears of ``denoiser.transformer`` by quantized ones, in place.

    Args:
        denoiser: its transformer is the teacher, until it has become the student.
        plan: see there.
        calls: recorded, and cut into the pieces to train on.

    Raises:
        StageError: a loss is not finite.
    """
    transformer: nn.Module = denoiser.transformer
    generator = torch.Generator().manual_seed(plan.seed)
    answers = _Answers([])
    if plan.finetune is not None:
        answers = _Answers(teacher_outputs(transformer, calls, device_of(transformer)))
    lists = denoiser.anatomy.block_lists(transformer)
    some = spread(calls, BlockTuning().pieces if plan.blocks is None else plan.blocks.pieces)
    teachers = {name: BlockInputs.record(transformer, name, some) for name in lists}
    inside = {name for name in plan.layers if name.startswith(tuple(f"{item}." for item in lists))}
    outside = [name for name in plan.layers if name not in inside]
    wants = [Want(name, statistic) for name in outside for statistic in plan.statistics]
    found = Calibration(list(some)).collect(transformer, wants) if wants else {}
    trained = {
        name: _replace(transformer, name, found.get(Want(name, SECOND_MOMENT)), plan, generator)
        for name in outside
    }
    for block_list in lists:
        student, teacher = BlockInputs.record(transformer, block_list, some), teachers.pop(block_list)
        blocks = getattr(transformer, block_list)
        for index, block in enumerate(track(blocks, f"codebooks of {block_list}", len(blocks))):
            names = [name for name in plan.layers if name.startswith(f"{block_list}.{index}.")]
            trained |= _compress_block(transformer, block, names, plan, teacher, student, generator)
    if plan.finetune is not None:
        _finetune(transformer, trained, answers, calls, plan.finetune)
    for layer in trained.values():
        replace_module(transformer, layer, harden(layer))


def spread(calls: Sequence[Call], count: int) -> list[Call]:
    """At most ``count`` of the calls, evenly over their order."""
    if len(calls) <= count:
        return list(calls)
    return [calls[(2 * index + 1) * len(calls) // (2 * count)] for index in range(count)]


def _compress_block(
    transformer: nn.Module,
    block: nn.Module,
    names: Sequence[str],
    plan: VectorPlan,
    teacher: BlockInputs,
    student: BlockInputs,
    generator: torch.Generator,
) -> dict[str, VectorLinear]:
    """One block: k-means, calibration; both walkers then stand at the next block."""
    floats = {name: cast(nn.Linear, transformer.get_submodule(name)) for name in names}
    with torch.no_grad():
        streams = _STREAMS[len(teacher.call(block, 0))]
    teacher.run(block)
    moments: dict[str, Tensor] = {}
    if plan.statistics:
        with watched(transformer, dict.fromkeys(names, plan.statistics)) as statistics:
            student.run(block, advance=False)
        moments = {name: found[SECOND_MOMENT].result() for name, found in statistics.items()}
    layers = {name: _replace(transformer, name, moments.get(name), plan, generator) for name in names}
    if plan.blocks is not None and layers:
        if plan.blocks.candidates > 1:
            for name, layer in layers.items():
                weight = floats[name].weight.detach().float().cpu()
                importance = channel_weights(
                    moments.get(name) if plan.weigh_channels else None, layer.in_features
                )
                layer.open_candidates(weight, importance, plan.blocks.candidates)
        # What the next block of the teacher reads is what this one gave.
        targets = [tuple(arguments[key] for key in streams) for arguments in teacher.arguments]
        history = calibrate_block(block, layers, student, targets, plan.blocks, generator)
        log.info("%s: loss %.3g -> %.3g", names[0], history[0], history[-1])
    student.run(block)
    return layers


def _replace(
    transformer: nn.Module, name: str, moment: Tensor | None, plan: VectorPlan, generator: torch.Generator
) -> VectorLinear:
    """Put a trainable vector-quantized linear in the place of the float one."""
    linear = cast(nn.Linear, transformer.get_submodule(name))
    device = linear.weight.device
    layer = plan.layers[name]
    weight = fit_vectors(
        linear.weight.cpu(),
        layer.format,
        generator,
        None if moment is None else moment.cpu(),
        name,
        iterations=plan.iterations,
        weigh_channels=plan.weigh_channels,
        rounding=plan.rounding,
    )
    bias = None if linear.bias is None else linear.bias.cpu()
    fresh = VectorLinear(weight, bias, layer.activation).to(device)
    fresh.requires_grad_(False)
    replace_module(transformer, linear, fresh)
    return fresh


def _finetune(
    transformer: Any,
    trained: Mapping[str, VectorLinear],
    answers: _Answers,
    calls: Sequence[Call],
    training: Training,
) -> None:
    """End to end: codebooks, scales and biases follow the exact gradient of the normalised output error."""
    groups = parameter_groups(trained, Rates(), learned_scales=True)
    weights = sum(layer.in_features * layer.out_features for layer in trained.values())
    recompute = weights >= RECOMPUTE_FROM and getattr(transformer, "_supports_gradient_checkpointing", False)
    if recompute:
        transformer.enable_gradient_checkpointing()
    try:
        history = distill(transformer, answers, calls, training, groups, description="tuning codebooks")
    finally:
        if recompute:
            transformer.disable_gradient_checkpointing()
    log.info("end to end: loss %.3g -> %.3g", history[0], history[-1])


class _Answers(nn.Module):
    """A teacher that is gone: gives its recorded outputs, in the order of the calls."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._outputs = iter(outputs)

    def forward(self, **kwargs: Any) -> Tensor:
        return next(self._outputs)
