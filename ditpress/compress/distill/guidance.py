"""Classifier-free guidance as a target: what two passes of the original make of one input.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6 in the form of samplers,
``e_u + w (e_c - e_u)``. A call recorded with guidance holds both rows of every image, with its class and
without. Pure mathematics on recorded calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.calibrate.calls import Call
from ditpress.calibrate.parts import split_calls
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
