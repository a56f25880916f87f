"""Classifier-free guidance in recorded calls: rows without a condition, and what both passes make together.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6 in the form of samplers,
``e_u + w (e_c - e_u)``. A call recorded with guidance holds both rows of every image, with its class and
without. Pure mathematics on recorded calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ditpress.calibrate.calls import Call
from ditpress.calibrate.parts import rows_of, split_calls
from ditpress.errors import InputError


def conditional(call: Call, null_class: int) -> Call:
    """The first half of a call recorded with guidance: the rows with a class; tensors are views.

    Args:
        call: of a class-conditional pipeline, conditional half first.
        null_class: the label that stands for no class.

    Raises:
        InputError: the call was not recorded with guidance, or its second half is not the first one without
            classes.
    """
    labels, x = call.kwargs.get("class_labels"), call.kwargs.get("hidden_states")
    if not isinstance(labels, Tensor) or not isinstance(x, Tensor):
        raise InputError(
            "a recorded call without class_labels; guidance is built into class-conditional models"
        )
    half, odd = divmod(len(x), 2)
    if odd or not half or not bool((labels[half:] == null_class).all()):
        raise InputError(
            "recorded without guidance; set calibration.guidance above 1, the scale that is to be built in"
        )
    if not torch.equal(x[:half], x[half:]):
        raise InputError("a recorded call whose halves differ in more than their classes; record it again")
    return split_calls([call], half)[0]


def guided(output: Tensor, scale: float, channels: int) -> Tensor:
    """The guided prediction ``e_u + scale * (e_c - e_u)`` from both halves of a call's output.

    Args:
        output: [2n, C, H, W], conditional half first.
        scale: w.
        channels: that are the prediction; a learned variance behind them stays the conditional one.

    Returns:
        [n, C, H, W].
    """
    with_class, without = output.chunk(2)
    target = with_class.clone()
    target[:, :channels] = without[:, :channels] + scale * (with_class - without)[:, :channels]
    return target


def without_condition(call: Call) -> range:
    """The rows of a call that were recorded beside others, for guidance, without class or prompt.

    Of two halves with equal ``hidden_states`` it is the one whose rows are all given the same: a pipeline
    puts it first or last. Where neither half is, or both are, no row counts as being without a condition.
    """
    half, odd = divmod(rows_of(call), 2)
    x = call.kwargs["hidden_states"]
    if odd or half < 2 or not torch.equal(x[:half], x[half:]):
        return range(0)
    conditions = [
        value
        for name, value in call.kwargs.items()
        if name not in ("hidden_states", "timestep") and isinstance(value, Tensor) and len(value) == 2 * half
    ]
    halves = [range(half), range(half, 2 * half)]
    alike = [
        rows for rows in halves if all(_equal_rows(value[rows.start : rows.stop]) for value in conditions)
    ]
    return alike[0] if len(alike) == 1 else range(0)


def thinned(calls: Sequence[Call], share: float, generator: torch.Generator) -> list[list[int]]:
    """The rows of every call, of those without a condition only the part ``share``, drawn at random.

    Under guidance w the errors of a row with its condition and of that without count w and w - 1 times in the
    guided prediction: what a student can learn is better spent on the first.
    """
    rows, before = [], 0.0
    for call in calls:
        bare = without_condition(call)
        after = before + share * len(bare)
        order = torch.randperm(len(bare), generator=generator).tolist()
        kept = {bare[place] for place in order[: int(after) - int(before)]}
        before = after
        rows.append([row for row in range(rows_of(call)) if row not in bare or row in kept])
    return rows


def _equal_rows(x: Tensor) -> bool:
    return torch.equal(x, x[:1].expand_as(x))
