"""One linear: how it will be stored and run, and the module that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditpress.compress.quantize.fit import FittedWeight, check_storage, fit_weight
from ditpress.compress.quantize.low_rank import fit_low_rank
from ditpress.compress.quantize.spec import LowRankSpec, WeightSpec
from ditpress.errors import InputError
from ditpress.kernels.linear import Activation, QuantizedLinear
from ditpress.kernels.packing import pack
from ditpress.kernels.transforms import Shift
from ditpress.kernels.wrap import LowRankLinear, TransformedLinear, input_weight

SECOND_MOMENT, MINIMUM = "input_second_moment", "input_min"

_CONSTANT = 1.0 - 1e-6  # |H|² / tr(H)² of inputs that are all multiples of one row is 1, but for rounding


@dataclass(frozen=True)
class LayerPlan:
    """How one linear will be stored and run.

    Attributes:
        weights: format, group and rounding of its weight.
        activation: how its input is rounded when it runs.
        low_rank: the branch beside it, or None.
        shift: its input is shifted to be 0 and more first, for an unsigned ``activation``.
    """

    weights: WeightSpec
    activation: Activation
    low_rank: LowRankSpec | None = None
    shift: bool = False

    def fold_scales(self, in_features: int) -> bool:
        """Whether group scales are multiplied into 8-bit weights when the layer runs."""
        grouped = self.weights.group_size(in_features) < in_features
        return self.weights.fold_scales and self.activation == "int8" and grouped

    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics of its input that the layer needs."""
        spec, rounding = self.low_rank, self.weights.rounding
        branch = spec is not None and (spec.whitens(rounding) or spec.method == "svdquant")
        needed = [SECOND_MOMENT] if branch or rounding == "gptq" else []
        return (*needed, MINIMUM) if self.shift else tuple(needed)

    def check(self, linear: nn.Linear, name: str) -> None:
        """Raise InputError where the shape of ``linear`` does not allow this, with the layer's name."""
        check_storage(linear.out_features, linear.in_features, self.weights, name)
        if self.low_rank is not None:
            rows, columns = linear.out_features, linear.in_features
            rank = self.low_rank.rank_of(rows, columns)
            if rank * (rows + columns) >= rows * columns:
                raise InputError(
                    f"{name}: a branch of rank {rank} is no smaller than the layer, {rows} x {columns}; "
                    "lower quantize.low_rank.rank or .share, or skip this layer"
                )


def quantize_linear(
    linear: nn.Linear, plan: LayerPlan, name: str, statistics: Mapping[str, Tensor]
) -> nn.Module:
    """``linear`` as ``plan`` says: a QuantizedLinear, with the branch and the shift around it.

    Args:
        linear: the float layer, which stays as it is.
        plan: what it becomes.
        name: of the layer, for errors.
        statistics: of its input, by name, those of ``plan.statistics()``.

    Raises:
        InputError: weights or inputs that are not finite, inputs that do not vary, or a format that does not
            fit.
        StageError: see :func:`ditpress.compress.quantize.gptq.gptq`.
    """
    device = linear.weight.device
    weight = linear.weight.detach().float().cpu()
    moment = statistics.get(SECOND_MOMENT)
    if moment is not None:
        moment = moment.cpu()
        check_varies(moment, name)
    bias = None if linear.bias is None else linear.bias.detach().float().cpu().clone()
    if plan.shift and bias is None:
        bias = torch.zeros(linear.out_features)
    fold = plan.fold_scales(linear.in_features)
    if plan.low_rank is None:
        main = _linear(fit_weight(weight, plan.weights, name, moment), plan.activation, bias, fold)
        module: nn.Module = main
    else:
        fitted, down, up = _with_branch(weight, plan, name, moment)
        main = _linear(fitted, plan.activation, bias, fold)
        module = LowRankLinear(main, down, up)
    if plan.shift:
        value = lower_bound(statistics[MINIMUM], name)
        total = input_weight(module).double().sum(dim=1)
        assert main.bias is not None
        main.bias.copy_((main.bias.double() - value * total).float())
        module = TransformedLinear(Shift(value), module)
    return module.to(device)


def empty_layer(linear: nn.Linear, plan: LayerPlan) -> nn.Module:
    """The module that :func:`quantize_linear` makes, without its numbers, on the meta device."""
    spec, columns = plan.weights, linear.in_features
    module: nn.Module = QuantizedLinear.empty(
        columns,
        linear.out_features,
        spec.format,
        spec.group_size(columns),
        plan.activation,
        bias=linear.bias is not None or plan.shift,
        device="meta",
        fold_scales=plan.fold_scales(columns),
    )
    if plan.low_rank is not None:
        rank, branch = plan.low_rank.rank_of(linear.out_features, columns), plan.low_rank.weights
        down, up = (
            QuantizedLinear.empty(
                inputs,
                outputs,
                branch.format,
                branch.group_size(inputs),
                branch_activation(plan),
                bias=False,
                device="meta",
            )
            for inputs, outputs in ((columns, rank), (rank, linear.out_features))
        )
        module = LowRankLinear(module, down, up)
    return TransformedLinear(Shift(torch.zeros((), device="meta")), module) if plan.shift else module


def lower_bound(minimum: Tensor, name: str) -> float:
    """What has to be added to inputs with these smallest values [K], so that none is below 0; 0 or more.

    Raises:
        InputError: a value that is not finite.
    """
    if not bool(torch.isfinite(minimum).all()):
        raise InputError(
            f"{name}: its inputs are NaN or infinite in calibration; check the checkpoint, or skip it"
        )
    return max(0.0, -float(minimum.min()))


def check_varies(second_moment: Tensor, name: str) -> None:
    """Raise InputError where every recorded input of a layer is a multiple of the same row."""
    moment = second_moment.double()
    trace, square = float(moment.diagonal().sum()), float(moment.square().sum())
    if len(moment) > 1 and square >= _CONSTANT * trace**2:
        raise InputError(
            f"{name}: its inputs are constant in calibration, there is nothing to fit to them; check the "
            "checkpoint, or skip it"
        )


def _with_branch(
    weight: Tensor, plan: LayerPlan, name: str, moment: Tensor | None
) -> tuple[FittedWeight, QuantizedLinear, QuantizedLinear]:
    """The weight beside a branch, and the branch: down and up.

    The turns round to nearest, also where the weight is rounded by GPTQ at their end, as in SVDQuant's code:
    what GPTQ leaves is small for the output and looks large for the weight, so that turns with it go astray.
    """
    spec = plan.low_rank
    assert spec is not None
    nearest = plan.weights.model_copy(update={"rounding": "nearest"})
    found = fit_low_rank(
        weight,
        spec.rank_of(*weight.shape),
        lambda w: fit_weight(w, nearest, name, moment),
        lambda w: fit_weight(w, spec.weights, f"branch of {name}"),
        method=spec.method,
        iterations=spec.iterations,
        second_moment=moment,
        whiten=spec.whitens(plan.weights.rounding),
    )
    fitted = found.weight
    if plan.weights.rounding != "nearest":
        fitted = fit_weight(weight - found.branch(), plan.weights, name, moment)
    activation = branch_activation(plan)
    return (
        fitted,
        _linear(found.down, activation, None, False),
        _linear(found.up, activation, None, False),
    )


def branch_activation(plan: LayerPlan) -> Activation:
    """How the inputs of the branch's two linears are rounded: per token to 8 bits, as its weights."""
    return "none" if plan.activation == "none" else "int8"


def _linear(
    fitted: FittedWeight, activation: Activation, bias: Tensor | None, fold_scales: bool
) -> QuantizedLinear:
    return QuantizedLinear(
        pack(fitted.codes, fitted.format.entries),
        fitted.scale,
        fitted.format,
        fitted.codes.shape[1] * fitted.format.vector_length,
        bias,
        activation,
        codebook=fitted.codebook,
        fold_scales=fold_scales,
        table=fitted.table,
    )
