"""The outputs of a linear as the stages after smoothing will give them, before any of them has run.

A search of smoothing factors ranks its candidates by rounding to nearest. What follows may make up for much
of what that loses: GPTQ for errors of weights, principal directions for outliers of inputs. So the best
candidate is tried with these too. A low-rank branch is left out: finding one takes longer than all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ditpress.compress.quantize.fit import FittedWeight, fit_weight
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.subspace import principal_directions
from ditpress.kernels.activations import Activation, fake_quantize
from ditpress.kernels.arguments import folds
from ditpress.kernels.folding import fold_scales
from ditpress.kernels.transforms import Subspace


@dataclass(frozen=True)
class Rehearsal:
    """How the linears that read one tensor of K channels will be stored and run.

    Attributes:
        weights: storage and rounding.
        activation: format of the inputs.
        group: channels that share a scale.
        rank: principal directions that leave the inputs before they are rounded; 0: none.
    """

    weights: WeightSpec
    activation: Activation
    group: int
    rank: int = 0

    def inputs(self, x: Tensor) -> Tensor:
        """What the run-time quantization leaves of ``x`` [R, K]."""
        return fake_quantize(x, self.activation, self.group)

    def nearest(self, weight: Tensor, name: str) -> Tensor:
        """What the storage leaves of ``weight`` [N, K] where it is rounded to nearest."""
        return self._stored(weight, self.weights.model_copy(update={"rounding": "nearest"}), name, None)

    def outputs(self, x: Tensor, weight: Tensor, second_moment: Tensor, name: str) -> Tensor:
        """``x`` [R, K] times ``weight`` [N, K], as it will be in the end, [R, N].

        Args:
            second_moment: of all inputs, as they are in ``x``, [K, K].
        """
        moment, rest = second_moment.cpu(), x
        if self.rank:
            split = Subspace.rounded(principal_directions(moment, self.rank))
            moment = split.input_weight(split.input_weight(moment).T)
            rest = split.to(x.device)(x)
        stored = self._stored(weight, self.weights, name, moment)
        whole = (x - rest) @ weight.T  # through a branch of 8 bits, which hold it nearly
        return self.inputs(rest) @ stored.T + whole

    def _stored(self, weight: Tensor, spec: WeightSpec, name: str, moment: Tensor | None) -> Tensor:
        fitted = fit_weight(weight.cpu(), spec, name, moment)
        return _multiplied(fitted, self.activation, spec.fold_scales).to(weight.device)


def _multiplied(fitted: FittedWeight, activation: str, fold: bool) -> Tensor:
    """The weight that a kernel multiplies by, float32 [N, K]: with folded scales one more rounding."""
    if not folds(fitted.scale, activation, fold):
        return fitted.dequantize()
    codebook = fitted.format.codebook_tensor() if fitted.codebook is None else fitted.codebook
    w8, scale = fold_scales(fitted.values(), fitted.scale, codebook, fitted.table)
    return w8.float() * scale
