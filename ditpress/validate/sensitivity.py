"""Where the error sits: per layer and per timestep, measured on recorded calls, as data for the plots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.progress import track
from ditpress.validate.paired import OutputSqnr, RecordedCall, decibel
from ditpress.validate.report import Strict
from ditpress.validate.size import stored_modules


class LayerDetail(Strict):
    """One module that owns tensors: its size, and its error where it was quantized.

    ``weight_error``: ‖Ŵ - W‖ / ‖W‖ (Frobenius). ``output_sqnr_db``: of its output, given the input that
    it has in the reference transformer, so without the errors of the layers before it.
    """

    name: str
    format: str
    original_bytes: float
    compressed_bytes: float
    weight_error: float | None
    output_sqnr_db: float | None


class TimestepDetail(Strict):
    """SQNR of the transformer's output at one timestep, in dB."""

    timestep: float
    sqnr_db: float


class Details(Strict):
    """What the plots of report.html show beyond report.json."""

    layers: list[LayerDetail]
    timesteps: list[TimestepDetail]


@torch.inference_mode()
def layer_errors(
    reference: nn.Module, compressed: nn.Module, calls: Sequence[RecordedCall]
) -> dict[str, tuple[float, float | None]]:
    """Weight error and output SQNR of every quantized layer, in one pass of ``reference`` over the calls.

    Args:
        reference: the float transformer exactly as the quantizer got it: smoothing or rotation folded in,
            nothing quantized yet. (Before smoothing the weights differ by more than rounding.)
        compressed: the same with :class:`~ditpress.kernels.linear.QuantizedLinear` in places.
        calls: recorded calls; with none, only the weights are compared.

    Returns:
        layer name -> (‖Ŵ - W‖ / ‖W‖, output SQNR in dB or None where no call reached the layer).
        Nothing is kept but two sums per layer.

    Raises:
        InputError: a quantized layer has no float layer of the same shape in ``reference``.
    """
    layers = {
        name: module for name, module in compressed.named_modules() if isinstance(module, QuantizedLinear)
    }
    floats: dict[str, nn.Linear] = {}
    weight_error: dict[str, float] = {}
    for name, layer in layers.items():
        floats[name] = linear = _float_twin(reference, name, layer)
        weight = linear.weight.double()
        difference = layer.dequantize().double() - weight
        weight_error[name] = float(
            difference.norm() / weight.norm().clamp_min(torch.finfo(weight.dtype).tiny)
        )

    signal: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)

    def hook_for(name: str, layer: QuantizedLinear):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            y = output.double()
            signal[name] += float(y.square().sum())
            noise[name] += float((layer(args[0]).double() - y).square().sum())

        return hook

    handles = [floats[name].register_forward_hook(hook_for(name, layer)) for name, layer in layers.items()]
    try:
        for call in track(calls, "error per layer"):
            reference(**call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: (weight_error[name], decibel(signal[name], noise[name]) if name in signal else None)
        for name in layers
    }


def details(
    original: nn.Module,
    compressed: nn.Module,
    *,
    errors: dict[str, tuple[float, float | None]] | None = None,
    sqnr: OutputSqnr | None = None,
    float_bits: int | None = None,
) -> Details:
    """Join sizes, :func:`layer_errors` and :func:`~ditpress.validate.paired.output_sqnr` for the plots."""
    before = stored_modules(original, float_bits=float_bits)
    errors = errors or {}
    layers = []
    for name, stored in stored_modules(compressed, float_bits=float_bits).items():
        weight_error, output_sqnr_db = errors.get(name, (None, None))
        layers.append(
            LayerDetail(
                name=name,
                format=stored.format,
                original_bytes=before[name].bits / 8 if name in before else 0.0,
                compressed_bytes=stored.bits / 8,
                weight_error=weight_error,
                output_sqnr_db=output_sqnr_db,
            )
        )
    by_timestep = {} if sqnr is None else sqnr.by_timestep
    return Details(
        layers=layers,
        timesteps=[TimestepDetail(timestep=t, sqnr_db=db) for t, db in sorted(by_timestep.items())],
    )


def _float_twin(reference: nn.Module, name: str, layer: QuantizedLinear) -> nn.Linear:
    try:
        linear = reference.get_submodule(name)
    except AttributeError:
        linear = None
    if not isinstance(linear, nn.Linear) or linear.weight.shape != (layer.out_features, layer.in_features):
        raise InputError(
            f"error per layer: {name} has no float Linear {layer.in_features} -> {layer.out_features} in the "
            "reference transformer; give the transformer that went into the quantizer"
        )
    return linear
