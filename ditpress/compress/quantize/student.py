"""A transformer in quantized training: its linears as layers that learn, with a norm or a branch.

Each layer that is trained has a counterpart that is stored: :func:`harden` goes from the first to the second,
:func:`twins` from the second to the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ditpress.calibrate.calibration import moved
from ditpress.calibrate.calls import Call
from ditpress.compress.quantize.fake import FakeQuantizedLinear
from ditpress.compress.quantize.fit import fit_weight
from ditpress.compress.quantize.fitted import FittedWeight
from ditpress.compress.quantize.layer import SECOND_MOMENT, LayerPlan, branch_activation
from ditpress.compress.quantize.low_rank import fit_low_rank
from ditpress.compress.quantize.rtn import nearest_values
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.quantize.vector_linear import VectorLinear
from ditpress.compress.quantize.walk import walk
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import Activation, QuantizedLinear
from ditpress.kernels.packing import unpack
from ditpress.kernels.wrap import LowRankLinear, NormedLinear
from ditpress.load.modules import replace_module
from ditpress.progress import track

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser

EPS = 1e-6  # of the norm, as in TerDiT
INSIDE = 0.3  # scales from the value of its code that a latent weight starts at, see latent()


@dataclass(frozen=True)
class Rates:
    """Learning rates as parts of the size of what they change, times that of the training.

    Scales and gains multiply whole rows, so they move slower than single weights. A bias moves as far as a
    weight.
    """

    weight: float = 1.0
    scale: float = 0.25
    bias: float = 1.0


class FakeNormed(nn.Module):
    """``NormedLinear`` in training. Parameter: gain float32 ``[N]``."""

    def __init__(self, linear: nn.Module, gain: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.gain = nn.Parameter(gain.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return normed(self.linear(x)) * self.gain


class FakeLowRank(nn.Module):
    """``LowRankLinear`` in training: a branch beside the main linear, all three fake-quantized."""

    def __init__(self, linear: nn.Module, down: FakeQuantizedLinear, up: FakeQuantizedLinear) -> None:
        super().__init__()
        self.linear, self.down, self.up = linear, down, up

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x) + self.up(self.down(x)))


def normed(y: Tensor) -> Tensor:
    """``y`` [..., N] over its root mean square along N."""
    return y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + EPS)


def fake_layers(
    student: Denoiser, plans: Mapping[str, LayerPlan], calls: Sequence[Call]
) -> dict[str, nn.Module]:
    """Put a fake-quantized layer in the place of every linear in ``plans``; what stands there, by name.

    ``calls``: recorded ones, for plans that need statistics of the inputs.

    Raises:
        InputError: a group that does not divide K, or a weight that is not finite; names the layer.
        StageError: as :func:`ditpress.compress.quantize.gptq.gptq`.
    """
    layers: dict[str, nn.Module] = {}
    wanted = {name: plan.statistics() for name, plan in plans.items()}
    for part in walk(student, wanted, calls, sequential=True):
        for name, found in track(part.items(), "rounding", len(part)):
            linear = cast(nn.Linear, student.transformer.get_submodule(name))
            made = _fake(linear, plans[name], name, found.get(SECOND_MOMENT)).requires_grad_(False)
            replace_module(student.transformer, linear, made)
            layers[name] = made
    return {name: layers[name] for name in plans}


def twins(
    student: nn.Module, rank: int | None, generator: torch.Generator
) -> dict[str, FakeQuantizedLinear | VectorLinear]:
    """Put a layer that learns in the place of every ``QuantizedLinear``; what stands there, by name.

    The twin of a layer computes with the same weight, to the bit: latent weights start at the values of their
    codes. Codebooks learn with the assignments as they are. Wrappers stay, and branches get twins as well.

    Args:
        student: with low-bit layers anywhere below.
        rank: of updates on the latent weights (:class:`~ditpress.compress.quantize.fake.LowRankUpdate`);
            None: none, the latent weights are for training themselves.
        generator: of the random halves of the updates.
    """
    found: dict[str, FakeQuantizedLinear | VectorLinear] = {}
    for name, layer in list(student.named_modules()):
        if isinstance(layer, QuantizedLinear):
            found[name] = _twin(layer, rank, generator).requires_grad_(False)
            replace_module(student, layer, found[name])
    return found


def _twin(
    layer: QuantizedLinear, rank: int | None, generator: torch.Generator
) -> FakeQuantizedLinear | VectorLinear:
    format = get_format(layer.format)
    codes = unpack(layer.codes, format.entries, layer.in_features // format.vector_length)
    if format.codebook is None:
        fitted = FittedWeight(codes, layer.scale, format, layer.codebook)
        return VectorLinear(fitted, layer.bias, layer.activation)
    fitted = FittedWeight(codes.cpu(), layer.scale.cpu(), format, table=_on_cpu(layer.table))
    weight = fitted.dequantize().to(layer.scale.device)
    made = FakeQuantizedLinear(weight, layer.bias, fitted, layer.activation, layer.fold_scales)
    if rank is not None:
        made.open_update(min(rank, layer.in_features, layer.out_features), generator)
    return made


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def start_norms(
    student: nn.Module,
    teacher: nn.Module,
    layers: dict[str, nn.Module],
    names: Sequence[str],
    calls: Sequence[Call],
) -> None:
    """Put a norm after the layers ``names``, with gains that start where the output matches best.

    For output n of the teacher's linear, y_n, and of the normed student's before the gain, r_n, the gain is
    that of least squares over the recorded calls, ``sum y_n r_n / sum r_n²``: the norm takes away how the
    length of y varies from call to call, the gain gives back all that is constant.
    """
    device = next(teacher.parameters()).device
    sums = {name: [torch.zeros(()), torch.zeros(())] for name in names}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            y = output.detach().double().flatten(0, -2)
            r = normed(layers[name](args[0])).detach().double().flatten(0, -2)
            sums[name] = [sums[name][0] + (y * r).sum(0), sums[name][1] + r.square().sum(0)]

        return hook

    handles = [teacher.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with torch.no_grad():
            for call in calls:
                teacher(**moved(call.kwargs, device))
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        product, energy = sums[name]
        gain = (product / torch.where(energy > 0, energy, 1.0)).float()
        wrapped = FakeNormed(layers[name], gain)
        replace_module(student, layers[name], wrapped)
        layers[name] = wrapped


def parameter_groups(
    layers: Mapping[str, nn.Module], rates: Rates, learned_scales: bool
) -> list[dict[str, Any]]:
    """Parameter groups for :func:`ditpress.compress.distill.trainer.distill`, a rate for each tensor."""
    groups: list[dict[str, Any]] = []

    def add(parameter: Tensor, rate: float) -> None:
        if rate > 0:  # a tensor of zeros has no size to take a part of: it stays
            groups.append({"params": [parameter], "rate": rate})

    for layer in layers.values():
        for module in layer.modules():
            if isinstance(module, VectorLinear):
                own = module.groups()
                groups += [g for g in own if learned_scales or g["params"][0] is not module.scale]
            elif isinstance(module, FakeQuantizedLinear):
                size = float(module.weight.square().mean().sqrt())
                if module.update is None:
                    add(module.weight, rates.weight * size)
                else:  # up counts in steps of the grid
                    add(module.update.up, rates.weight)
                    add(module.update.down, rates.weight * float(module.update.down.square().mean().sqrt()))
                if learned_scales:
                    add(module.scale, rates.scale * float(module.scale.abs().mean()))
                if module.bias is not None:
                    add(module.bias, rates.bias * size)
            elif isinstance(module, FakeNormed):
                add(module.gain, rates.scale * float(module.gain.abs().mean()))
    return groups


def refit(layers: Mapping[str, nn.Module]) -> None:
    """Least-squares scales of the latent weights, in every fake-quantized layer."""
    for layer in layers.values():
        for module in layer.modules():
            if isinstance(module, FakeQuantizedLinear):
                module.refit()


def harden(layer: nn.Module) -> nn.Module:
    """The stored layer that computes as ``layer``."""
    if isinstance(layer, FakeQuantizedLinear):
        return layer.harden()
    if isinstance(layer, VectorLinear):
        return layer.quantized()
    if isinstance(layer, FakeLowRank):
        return LowRankLinear(harden(layer.linear), harden(layer.down), harden(layer.up))
    assert isinstance(layer, FakeNormed)
    return NormedLinear(harden(layer.linear), layer.gain.detach().clone(), EPS)


def fake_linear(
    weight: Tensor,
    bias: Tensor | None,
    spec: WeightSpec,
    activation: Activation,
    fold: bool,
    name: str,
    moment: Tensor | None = None,
) -> FakeQuantizedLinear:
    """A fake-quantized linear that starts as ``spec`` rounds ``weight``; ``name`` is used in errors."""
    weight = weight.detach().float()
    fitted = fit_weight(weight.cpu(), spec, name, None if moment is None else moment.cpu())
    return FakeQuantizedLinear(latent(weight, fitted), bias, fitted, activation, fold)


def latent(weight: Tensor, fitted: FittedWeight) -> Tensor:
    """Latent weights [N, K] that round to the codes of ``fitted``: ``weight`` itself where it does.

    Others start inside the cell of their code, ``INSIDE`` scales from its value towards the weight: entries
    of a table are whole numbers, so a cell reaches half a scale to either side at least.
    """
    split = weight.view(len(weight), fitted.scale.shape[1], -1)
    scale = fitted.scale.float().to(weight.device)
    table = None if fitted.table is None else fitted.table.to(weight.device)
    nearest = nearest_values(split, scale, fitted.format, table).view_as(weight)
    wanted = fitted.values().to(weight.device)
    steps = scale.repeat_interleave(split.shape[2], dim=1)
    stored = wanted * steps
    return torch.where(nearest == wanted, weight, stored + INSIDE * steps * (weight - stored).sign())


def _fake(linear: nn.Linear, plan: LayerPlan, name: str, moment: Tensor | None) -> nn.Module:
    """What is trained in the place of ``linear``: its weight as planned, or the best turn with a branch."""
    spec, fold = plan.weights, plan.fold_scales(linear.in_features)
    if plan.low_rank is None:
        return fake_linear(linear.weight, linear.bias, spec, plan.activation, fold, name, moment)
    weight, branch = linear.weight.detach(), plan.low_rank.weights
    nearest = spec.model_copy(update={"rounding": "nearest"})
    found = fit_low_rank(
        weight.cpu(),
        plan.low_rank.rank_of(*weight.shape),
        lambda target: fit_weight(target, nearest, name),
        lambda part: fit_weight(part, branch, f"branch of {name}"),
        iterations=plan.low_rank.iterations,
    )
    down, up = (
        fake_linear(part.dequantize().to(weight.device), None, branch, branch_activation(plan), False, name)
        for part in (found.down, found.up)
    )
    rest = weight.float() - found.branch().to(weight.device)
    return FakeLowRank(fake_linear(rest, linear.bias, spec, plan.activation, fold, name, moment), down, up)
