"""Block-wise calibration of vector-quantized layers: VQ4DiT (Deng et al. 2025, section 3.3), without data.

The block learns to give the teacher's output while it reads what the blocks before it, already compressed,
give: it corrects their errors too. First assignments and codebooks learn together; a penalty on undecided
ratios joins in when the loss stops decreasing; decided ratios freeze, and at the end the layers are hardened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.calibrate.blocks import BlockInputs
from ditpress.compress.distill.losses import relative_error
from ditpress.compress.quantize.vector_linear import VectorLinear, ratio_penalty
from ditpress.errors import StageError
from ditpress.schema import Settings

ALPHA = 0.9  # of RMSprop, VQ4DiT's released code
PATIENCE = 10  # steps whose mean loss must fall below that of as many steps before
HARDENED = 0.99  # part of the sub-vectors that are decided when a layer is hardened; section 3.3


class BlockTuning(Settings):
    """How a block is calibrated. RMSprop, as in the paper; rates are relative to the size of what learns."""

    steps: int = Field(default=100, ge=1, description="optimizer steps a block")
    calls: int = Field(default=2, ge=1, description="pieces of recorded calls a step")
    pieces: int = Field(
        default=128,
        ge=1,
        description="of calls in use, evenly over the trajectories: bounds the memory, since their hidden "
        "states are held twice",
    )
    candidates: int = Field(
        default=1,
        ge=1,
        le=16,
        description="nearest codewords to choose from, beside rounding: nearest; 2 in the paper, 1: fixed",
    )
    rate: float = Field(
        default=2e-3,
        gt=0,
        description="of codebooks, scales and biases; the paper's 1e-4 over weights of about 0.05",
    )
    logit_rate: float = Field(default=5e-2, gt=0, description="of the candidates' logits; as in the paper")
    penalty: float = Field(
        default=1.0, ge=0, description="weight of the ratio penalty, in parts of the loss it is added to"
    )


def block_loss(outputs: Sequence[Tensor | None], targets: Sequence[Tensor | None]) -> Tensor:
    """Mean over streams of the squared error in parts of the target's energy.

    A stream that ends in the block (the text of the last SD3 block) is None, and does not count.
    """
    errors = [
        relative_error(output, target)
        for output, target in zip(outputs, targets, strict=True)
        if output is not None and target is not None
    ]
    return torch.stack(errors).mean()


def calibrate_block(
    block: nn.Module,
    layers: Mapping[str, VectorLinear],
    inputs: BlockInputs,
    targets: Sequence[tuple[Tensor | None, ...]],
    tuning: BlockTuning,
    generator: torch.Generator,
) -> list[float]:
    """Train the ``layers`` inside ``block`` in place and harden them; returns the loss of every step.

    Args:
        block: holds the layers; candidates are open where ``tuning.candidates`` > 1.
        layers: by name, for errors.
        inputs: what the block reads in every call.
        targets: what the teacher's block gives in every call, each a tuple of streams.
        tuning: see there.
        generator: of the order of the calls.

    Raises:
        StageError: the loss is not finite.
    """
    groups = [
        {"params": group["params"], "lr": tuning.rate * group["rate"]}
        for layer in layers.values()
        for group in layer.groups()
    ]
    logits = [layer.logits for layer in layers.values() if layer.logits is not None]
    groups += [{"params": logits, "lr": tuning.logit_rate}] if logits else []
    parameters = [parameter for group in groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.RMSprop(groups, alpha=ALPHA)
    device = parameters[0].device
    history: list[float] = []
    deciding = False
    for step in range(tuning.steps):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for index in torch.randint(len(inputs), (tuning.calls,), generator=generator).tolist():
            target = tuple(None if stream is None else stream.to(device) for stream in targets[index])
            loss = block_loss(inputs.call(block, index), target) / tuning.calls
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise StageError(
                f"{next(iter(layers))}: the loss of its block is {total} at step {step}; lower blocks.rate"
            )
        history.append(total)
        open_layers = [layer for layer in layers.values() if layer.logits is not None]
        deciding = deciding or stopped_decreasing(history) or 2 * step >= tuning.steps
        if deciding and open_layers and tuning.penalty:
            penalty = torch.stack([ratio_penalty(layer.ratios()) for layer in open_layers]).mean()
            (tuning.penalty * total * penalty).backward()
        optimizer.step()
        for layer in open_layers:
            if layer.freeze() >= HARDENED:
                layer.harden()
    for layer in layers.values():
        layer.harden()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return history


def stopped_decreasing(history: Sequence[float]) -> bool:
    """Whether the mean of the last ``PATIENCE`` losses is not below that of as many before."""
    if len(history) < 2 * PATIENCE:
        return False
    return sum(history[-PATIENCE:]) >= sum(history[-2 * PATIENCE : -PATIENCE])
