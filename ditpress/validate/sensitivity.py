"""Where the error sits: per layer and per timestep, measured on recorded calls, as data for the plots."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import branch_modules, input_weight, main_linear, outer_names
from ditpress.memory import release
from ditpress.progress import track
from ditpress.validate.paired import OutputSqnr, RecordedCall, decibel
from ditpress.validate.report import Details, LayerDetail, TimestepDetail
from ditpress.validate.size import Stored, stored_modules

Energies = dict[float, tuple[Tensor, Tensor]]  # of an output and of its error, by timestep; rows of a batch


class LayerError(NamedTuple):
    """Error of one low-bit layer; a plain list in JSON.

    ``weight``: ‖Ŵ - W‖ / ‖W‖; ``output_sqnr_db``: of its output, None where no call reached the layer;
    ``by_timestep``: pairs of timestep and SQNR in dB, in the order of sampling.
    """

    weight: float
    output_sqnr_db: float | None
    by_timestep: Sequence[tuple[float, float]] = ()


def low_bit_layers(transformer: nn.Module) -> set[str]:
    """Names, as in the plain model, of the linears whose main part is quantized; not of branches."""
    branches, outer = branch_modules(transformer), outer_names(transformer)
    return {
        outer.get(name, name)
        for name, module in transformer.named_modules()
        if isinstance(module, QuantizedLinear) and module not in branches
    }


def layer_errors(
    reference: nn.Module,
    compressed: nn.Module,
    calls: Sequence[RecordedCall],
    names: Collection[str] | None = None,
) -> dict[str, LayerError]:
    """The error of every quantized layer, by name, in one pass of ``reference`` over the calls.

    A layer counts with its wrappers on both sides: low-rank branches add to its weight, a rotation of its
    input is undone in it.

    Args:
        reference: the float transformer exactly as the quantizer got it: smoothing or rotation folded in,
            nothing quantized yet. (Before smoothing the weights differ by more than rounding.)
        compressed: the same with :class:`~ditpress.kernels.linear.QuantizedLinear` in places.
        calls: recorded calls; with none, only the weights are compared.
        names: of the layers to compare, as in the plain model; None: all that are quantized.

    Raises:
        InputError: a quantized layer has no float layer of the same shape in ``reference``.
    """
    return {
        name: LayerError(weight_error, *layer_sqnr(energies))
        for name, (weight_error, energies) in layer_energies(reference, compressed, calls, names).items()
    }


def layer_sqnr(energies: Energies) -> tuple[float | None, list[tuple[float, float]]]:
    """SQNR in dB over all timesteps, None without any, and at each of them, in the order of sampling."""
    rows = total_energy(energies)
    by_timestep = [(step, _decibel(energies[step])) for step in sorted(energies, reverse=True)]
    return None if rows is None else _decibel(rows), by_timestep


def _decibel(rows: tuple[Tensor, Tensor]) -> float:
    signal, noise = rows
    return decibel(float(signal.sum()), float(noise.sum()))


def total_energy(energies: Energies) -> tuple[Tensor, Tensor] | None:
    """Rows of signal and noise over all timesteps; None where there are none."""
    if not energies:
        return None
    signal, noise = ([pair[part] for pair in energies.values()] for part in (0, 1))
    if len({len(rows) for rows in signal}) > 1:  # batches of several sizes: rows are not the same samples
        signal, noise = ([rows.sum()[None] for rows in parts] for parts in (signal, noise))
    return torch.stack(signal).sum(0), torch.stack(noise).sum(0)


@torch.inference_mode()
def layer_energies(
    reference: nn.Module,
    compressed: nn.Module,
    calls: Sequence[RecordedCall],
    names: Collection[str] | None = None,
) -> dict[str, tuple[float, Energies]]:
    """What :func:`layer_errors` is made of: weight error, and energies by timestep of output and its error.

    Nothing is kept but two sums per layer, timestep and row of the batch.

    Returns:
        layer name -> (‖Ŵ - W‖ / ‖W‖, timestep -> (Σ|y|², Σ|y - ŷ|²), float64 [batch] each).
    """
    wanted = low_bit_layers(compressed) if names is None else set(names)
    layers = {name: module for name, module in compressed.named_modules() if name in wanted}
    floats: dict[str, nn.Module] = {}
    weight_error: dict[str, float] = {}
    for name, layer in layers.items():
        floats[name] = _float_twin(reference, name, layer)
        weight = input_weight(floats[name]).double()
        difference = input_weight(layer).double() - weight
        weight_error[name] = float(
            difference.norm() / weight.norm().clamp_min(torch.finfo(weight.dtype).tiny)
        )

    # Python floats: small tensors that stay would lie between the large ones that go, and split the heap.
    sums: dict[str, dict[float, tuple[list[float], list[float]]]] = {name: {} for name in layers}
    timestep = math.nan

    def hook_for(name: str, layer: nn.Module):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            y = output.double()
            pair = (y, layer(args[0]).double() - y)
            signal, noise = (part.square().reshape(len(part), -1).sum(1).tolist() for part in pair)
            before = sums[name].get(timestep)
            if not sums[name]:
                release()  # the layer has just packed its weights, between what is freed now
            if before is not None:
                signal, noise = (_add(*parts) for parts in zip(before, (signal, noise), strict=True))
            sums[name][timestep] = (signal, noise)

        return hook

    handles = [floats[name].register_forward_hook(hook_for(name, layer)) for name, layer in layers.items()]
    try:
        for call in track(calls, "error per layer"):
            timestep = float(call.timestep)
            reference(**call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (weight_error[name], _energies(sums[name])) for name in layers}


def _energies(sums: Mapping[float, tuple[list[float], list[float]]]) -> Energies:
    rows = partial(torch.tensor, dtype=torch.float64)
    return {timestep: (rows(signal), rows(noise)) for timestep, (signal, noise) in sums.items()}


def _add(a: list[float], b: list[float]) -> list[float]:
    """Rows of two calls; of one total where the batches differ."""
    return [x + y for x, y in zip(a, b, strict=True)] if len(a) == len(b) else [sum(a) + sum(b)]


def details(
    original: nn.Module,
    compressed: nn.Module,
    *,
    errors: Mapping[str, LayerError] | None = None,
    sqnr: OutputSqnr | None = None,
    float_bits: int | None = None,
) -> Details:
    """Join sizes, :func:`layer_errors` and :func:`~ditpress.validate.paired.output_sqnr` for the plots."""
    before = stored_modules(original, float_bits=float_bits)
    errors = errors or {}
    outer = outer_names(compressed)
    parts: dict[str, list[Stored]] = defaultdict(list)
    for name, stored in stored_modules(compressed, float_bits=float_bits).items():
        parts[outer.get(name, name)].append(stored)
    layers = []
    for name, found in parts.items():
        error = errors.get(name)
        # The main linear holds the parameters; what wraps it holds none.
        main = max(found, key=lambda stored: stored.parameters)
        layers.append(
            LayerDetail(
                name=name,
                format=main.format,
                original_bytes=before[name].bits / 8 if name in before else 0.0,
                compressed_bytes=sum(stored.bits for stored in found) / 8,
                weight_error=None if error is None else error.weight,
                output_sqnr_db=None if error is None else error.output_sqnr_db,
                timesteps=[] if error is None else timestep_details(error.by_timestep),
            )
        )
    by_timestep = {} if sqnr is None else sqnr.by_timestep
    return Details(
        layers=layers,
        timesteps=timestep_details(sorted(by_timestep.items())),
    )


def timestep_details(pairs: Iterable[tuple[float, float]]) -> list[TimestepDetail]:
    """Timesteps with their SQNR in dB, as the report has them."""
    return [TimestepDetail(timestep=timestep, sqnr_db=db) for timestep, db in pairs]


def _float_twin(reference: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    low_bit = main_linear(layer)
    try:
        twin = reference.get_submodule(name)
        linear: nn.Module | None = main_linear(twin)
    except (AttributeError, InputError):
        linear = None
    shape = (low_bit.out_features, low_bit.in_features)
    if not isinstance(linear, nn.Linear) or linear.weight.shape != shape:
        raise InputError(
            f"error per layer: {name} has no float Linear {low_bit.in_features} -> {low_bit.out_features} in "
            "the reference transformer; give the transformer that went into the quantizer"
        )
    return twin
