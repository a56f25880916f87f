"""Keep the few directions that hold most of a linear's input in 8 bits, and round only the rest to 4.

ResQ (Saxena et al. 2024, "ResQ: Mixed-Precision Quantization of Large Language Models with Low-Rank
Residuals", section 3) keeps the principal components of the activations in 8 bits and the others in 4. Here
D, [r, K], holds the r eigenvectors of largest eigenvalue of the second moment E[x xᵀ] of the input: of all
subspaces with r dimensions the one that leaves the least energy beside it, and so the least rounding noise,
since 4-bit activations lose a share of the energy that they round. The mean of the inputs is one of these
directions where it is large. The split is exact: ``W x = W (x - Dᵀ D x) + (W Dᵀ) (D x)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.compress.quantize.fit import fit_weight
from ditpress.compress.quantize.layer import SECOND_MOMENT, check_varies
from ditpress.compress.quantize.low_rank import largest_singular
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.quantize.walk import walk
from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError, StageError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.packing import pack
from ditpress.kernels.transforms import Subspace
from ditpress.kernels.wrap import SubspaceLinear
from ditpress.load.anatomy import Role
from ditpress.load.modules import replace_module

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.calibrate.calls import Call
    from ditpress.load.denoiser import Denoiser


def principal_directions(second_moment: Tensor, rank: int) -> Tensor:
    """The ``rank`` eigenvectors of largest eigenvalue of ``second_moment`` [K, K], as float64 rows [rank, K].

    Of large matrices nearly so. Signs are such that the entry of largest magnitude is positive.
    """
    vectors = largest_singular(second_moment.double(), rank)[2]  # symmetric and not negative: eigenvectors
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign()


@register_stage
class SubspaceStage(Stage):
    """Split the inputs of linears: principal directions go through a branch of 8 bits."""

    kind: Literal["subspace"] = "subspace"
    # What comes after it rounds the rest; folds and rotations of inputs belong before it.
    not_after: ClassVar[frozenset[str]] = frozenset({"subspace", "quantize", "ternary", "vq"})
    not_before: ClassVar[frozenset[str]] = frozenset({"smooth", "rotate"})
    needs_calls: ClassVar[bool] = True

    roles: tuple[Role, ...] = Field(
        default=(Role.QKV, Role.ATTENTION_OUT, Role.MLP_IN, Role.MLP_OUT),
        description="linears whose inputs are split",
    )
    rank: int = Field(default=16, ge=1, description="directions, at most")
    share: float = Field(
        default=1 / 24,
        gt=0.0,
        le=0.5,
        description="of a layer's smaller side that the rank may be, at most: 16 directions cost 0.2 bits a "
        "weight in DiT-XL/2, and would cost 1.3 in a model a sixth as wide",
    )
    weights: WeightSpec | None = Field(
        default=WeightSpec(format="int8", group="channel"),
        description="storage of the branch's weights; null: float32, then the function stays exactly",
    )

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        for names in self._groups(denoiser, skeleton):
            linears = [cast(nn.Linear, skeleton.get_submodule(name)) for name in names]
            rank = self.rank_of(linears)
            transform = Subspace.empty(linears[0].in_features, "meta", rank=rank)
            for linear in linears:
                up: nn.Module = nn.Linear(rank, linear.out_features, bias=False, device="meta")
                if self.weights is not None:
                    group = self.weights.group_size(rank)
                    up = QuantizedLinear.empty(
                        rank,
                        linear.out_features,
                        self.weights.format,
                        group,
                        "int8",
                        bias=False,
                        device="meta",
                    )
                replace_module(skeleton, linear, SubspaceLinear(transform, linear, up))

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        """Refused: see ``apply_calls``. Raises StageError."""
        raise StageError("subspace: works on recorded calls; call apply_calls")

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], calls: Sequence[Call]
    ) -> None:
        """Split the inputs, block by block, by what they were in ``calls``.

        Raises:
            InputError: weights that are not finite, constant inputs, too few calls, or nothing to split.
        """
        transformer = denoiser.transformer
        groups = {names[0]: names for names in self._groups(denoiser, transformer)}
        for name in (name for names in groups.values() for name in names):
            if not bool(torch.isfinite(cast(nn.Linear, transformer.get_submodule(name)).weight).all()):
                raise InputError(
                    f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
                )
        wanted = dict.fromkeys(groups, (SECOND_MOMENT,))
        for part in walk(denoiser, wanted, calls, sequential=False):
            for first, found in part.items():
                check_varies(found[SECOND_MOMENT], first)
                linears = [cast(nn.Linear, transformer.get_submodule(name)) for name in groups[first]]
                directions = principal_directions(found[SECOND_MOMENT].cpu(), self.rank_of(linears))
                transform = Subspace.rounded(directions).to(linears[0].weight.device)
                for name, linear in zip(groups[first], linears, strict=True):
                    up = self._branch(linear, cast(Subspace, transform), name)
                    replace_module(transformer, linear, SubspaceLinear(cast(Subspace, transform), linear, up))

    def _groups(self, denoiser: Denoiser, transformer: nn.Module) -> list[tuple[str, ...]]:
        """Float linears of the roles, those that read one tensor together."""
        roles = denoiser.anatomy.linears(transformer)
        groups = []
        for names in denoiser.anatomy.readers(transformer):
            taken = tuple(
                name
                for name in names
                if roles[name] in self.roles and isinstance(transformer.get_submodule(name), nn.Linear)
            )
            groups += [taken] if taken else []
        if not groups:
            raise InputError(
                "subspace: no linear of the model has a role in subspace.roles; name others, or leave it out"
            )
        return groups

    def rank_of(self, linears: Sequence[nn.Linear]) -> int:
        """How many directions leave the input that ``linears`` share."""
        side = min(min(linear.in_features, linear.out_features) for linear in linears)
        return max(1, min(self.rank, int(self.share * side)))

    def _branch(self, linear: nn.Linear, transform: Subspace, name: str) -> nn.Module:
        """``W Dᵀ``, as it is stored."""
        weight = linear.weight.detach().double() @ transform.matrix(torch.float64).T
        if self.weights is None:
            up = nn.Linear(weight.shape[1], len(weight), bias=False, dtype=linear.weight.dtype)
            up.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
            return up
        fitted = fit_weight(weight.float().cpu(), self.weights, f"branch of {name}")
        layer = QuantizedLinear(
            pack(fitted.codes, fitted.format.entries),
            fitted.scale,
            fitted.format,
            weight.shape[1],
            None,
            "int8",
            codebook=fitted.codebook,
            table=fitted.table,
        )
        return layer.to(linear.weight.device)
