"""How much a unit matters, one number each; the larger, the longer it stays.

With a loss on real images gone, what remains to be kept is the model's own output y on recorded calls. The
gradient of ``|y - y_teacher|²`` is zero at the teacher, so the two measures with gradients work on y itself.
With z a vector of random signs of the shape of y, one backward pass gives ``g = ∂<y, z>/∂w``, and
``E_z[g_v g_w] = Σ_o (∂y_o/∂v)(∂y_o/∂w)``, the Gauss-Newton matrix of the output error. Removing the weights w
of a unit changes y by ``-Σ_w w ∂y/∂w`` to first order, so

``taylor``   ``E_z[(Σ_w w g_w)²]`` is the square of that change, with all correlations inside the unit. With
             the gradient of a training loss it is the criterion of Molchanov et al. 2019 ("Importance
             Estimation for Neural Network Pruning", with gates) and of NViT (Yang et al. 2023, "Global
             Vision Transformer Pruning with Hessian-Aware Saliency"); Diff-Pruning (Fang et al. 2023,
             section 4) sums ``|w g|`` of the diffusion loss over timesteps.
``hessian``  ``E_z[Σ_w w² g_w²]`` keeps the diagonal: optimal brain damage (LeCun et al. 1989) with the
             diagonal of Gauss-Newton for the Hessian.

The sums run over the gates of a unit (:class:`~ditpress.compress.prune.units.Units`) only: with these at
zero its other weights have no effect, and counting them would count one removal twice. For a channel of the
residual stream they are the columns of all that reads it, in every block and the last layer; that mean and
variance of the norms change with it too is left out.

``magnitude``  the L2 norm of all its weights, rows and columns together, those of modulations too (the
             group magnitude of Torch-Pruning: Fang et al. 2023, "DepGraph"). ``random`` is the baseline of
             all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditpress.calibrate.blocks import device_of
from ditpress.calibrate.calibration import moved
from ditpress.calibrate.calls import Call
from ditpress.compress.prune.units import Units
from ditpress.errors import StageError
from ditpress.progress import track

GradientMethod = Literal["taylor", "hessian"]
RECOMPUTE_FROM = (
    100_000_000  # weights; from here on activations of all blocks at once would be the most memory
)


def magnitude_scores(transformer: nn.Module, units: Sequence[Units]) -> list[Tensor]:
    """L2 norm of all weights and biases of each unit, float64 [count] for every entry of ``units``."""
    result = []
    for one in units:
        total = torch.zeros(one.count, dtype=torch.float64)
        for name in one.rows:
            module: Any = transformer.get_submodule(name)  # a linear, or the convolution of an embedder
            squares = module.weight.detach().double().square().flatten(1).sum(dim=1)
            if module.bias is not None:
                squares = squares + module.bias.detach().double().square()
            total += squares.view(-1, one.count, one.size).sum(dim=(0, 2)).cpu()
        for name in one.columns:
            total += _columns(_linear(transformer, name).weight.detach().double().square(), one).sum(0).cpu()
        result.append(total.sqrt())
    return result


def random_scores(units: Sequence[Units], seed: int) -> list[Tensor]:
    """Uniform numbers, float64 [count] each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(one.count, dtype=torch.float64, generator=generator) for one in units]


def gradient_scores(
    transformer: Any,
    units: Sequence[Units],
    calls: Sequence[Call],
    method: GradientMethod,
    probes: int,
    seed: int,
) -> list[Tensor]:
    """``taylor`` or ``hessian``, summed over all outputs and the mean over calls; float64 [count] each.

    Args:
        transformer: its weights get gradients while this runs, and are left as they were.
        units: what to rate; their gates are plain linears.
        calls: the recorded calls.
        method: see the module's text.
        probes: vectors of random signs for each call.
        seed: of the signs.

    Raises:
        StageError: no calls, or a gradient is NaN or infinite.
    """
    if not calls:
        raise StageError(f"prune-width: importance {method} works on recorded calls, there are none")
    generator = torch.Generator().manual_seed(seed)
    totals = [torch.zeros(one.count, dtype=torch.float64) for one in units]
    by_rows: dict[str, bool] = {}  # a linear may be a gate of several kinds of units
    for name, rows in ((name, not one.columns) for one in units for name in one.gates):
        by_rows[name] = rows or by_rows.get(name, False)
    device = device_of(transformer)
    with _watched(transformer, by_rows) as parameters:
        flat = [tensor for tensors in parameters.values() for tensor in tensors]
        for call in track(calls, f"importance ({method})"):
            output = transformer(**moved(call.kwargs, device), return_dict=False)[0]
            for probe in range(probes):
                signs = random_signs(output.shape, generator).to(output)
                found = torch.autograd.grad(
                    output, flat, signs, retain_graph=probe + 1 < probes, materialize_grads=True
                )
                products = _products(parameters, found)
                for total, one in zip(totals, units, strict=True):
                    total += _score(one, products, method).cpu() / (probes * len(calls))
            del output
    for total, one in zip(totals, units, strict=True):
        if not bool(torch.isfinite(total).all()):
            raise StageError(
                f"{one.name}: its gradients are NaN or infinite in calibration; check the checkpoint, or set "
                "prune-width.importance to magnitude"
            )
    return totals


def random_signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """1 and -1 with equal chance, float32: of all distributions that will do, the one of least variance."""
    return torch.randint(0, 2, tuple(shape), generator=generator).float() * 2 - 1


def _score(one: Units, products: dict[str, tuple[Tensor, ...]], method: GradientMethod) -> Tensor:
    """Of one probe: (Σ w g)² or Σ (w g)² of every unit, [count], over all its gates."""
    parts = []
    for name in one.gates:
        weight, *bias = products[name]
        if one.columns:
            parts.append(_columns(weight, one))
            continue
        parts.append(weight.T.reshape(-1, one.count, one.size).transpose(1, 2).flatten(0, 1))
        parts += [vector.view(one.count, one.size).T for vector in bias]
    together = torch.cat(parts).double()
    return together.square().sum(dim=0) if method == "hessian" else together.sum(dim=0).square()


def _products(
    parameters: dict[str, tuple[Tensor, ...]], gradients: Sequence[Tensor]
) -> dict[str, tuple[Tensor, ...]]:
    """w g of every watched linear: of its weight, and of its bias where it has one."""
    left = iter(gradients)
    return {
        name: tuple(tensor.detach() * next(left) for tensor in tensors)
        for name, tensors in parameters.items()
    }


def _columns(values: Tensor, one: Units) -> Tensor:
    """The entries [., count] of ``values`` [N, K] by the unit that their column belongs to."""
    part = values[:, one.start : one.start + one.count * one.size]
    return part.reshape(-1, one.count, one.size).transpose(1, 2).flatten(0, 1)


def _linear(transformer: nn.Module, name: str) -> nn.Linear:
    linear = transformer.get_submodule(name)
    assert isinstance(linear, nn.Linear), "checked before"
    return linear


@contextmanager
def _watched(transformer: Any, by_rows: Mapping[str, bool]) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """The weight of every linear in ``by_rows``, and where that is true its bias, with gradients inside."""
    parameters: dict[str, tuple[Tensor, ...]] = {}
    for name, rows in by_rows.items():
        linear = _linear(transformer, name)
        biased = rows and linear.bias is not None
        parameters[name] = (linear.weight, linear.bias) if biased else (linear.weight,)
    before = [(tensor, tensor.requires_grad) for tensor in transformer.parameters()]
    recompute = sum(tensor.numel() for tensor, _ in before) >= RECOMPUTE_FROM and getattr(
        transformer, "_supports_gradient_checkpointing", False
    )
    for tensor, _ in before:
        tensor.requires_grad_(False)
    for tensors in parameters.values():
        for tensor in tensors:
            tensor.requires_grad_(True)
    if recompute:
        transformer.enable_gradient_checkpointing()
    try:
        with torch.enable_grad():
            yield parameters
    finally:
        if recompute:
            transformer.disable_gradient_checkpointing()
        for tensor, required in before:
            tensor.requires_grad_(required)
