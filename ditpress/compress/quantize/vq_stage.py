"""The stage ``vq``: linears become codebooks of sub-vectors, 2 or 3 bits a weight (VQ4DiT)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ditpress.calibrate.calls import Call
from ditpress.calibrate.parts import split_calls
from ditpress.compress.distill.trainer import Training
from ditpress.compress.quantize.vector import ITERATIONS, check_vectors
from ditpress.compress.quantize.vector_blocks import BlockTuning
from ditpress.compress.quantize.vector_run import VectorLayer, VectorPlan, compress
from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError
from ditpress.kernels.formats import get_format
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load.anatomy import Anatomy, Role, plain_name
from ditpress.load.modules import replace_module

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser

FORMAT_OF_BITS = {2: "vq-256x4", 3: "vq-64x2"}  # section 4.1 of the paper: k = 256, d = 4 and k = 64, d = 2


@register_stage
class VectorQuantize(Stage):
    """A codebook per layer by k-means, calibrated block by block and then end to end, on the teacher's
    trajectories alone. As published with ``rounding: nearest, blocks: {candidates: 2}``; GPTQ finds better
    assignments than the nearest codeword, and in one pass.

    Quantized is every linear of the blocks, the modulation among them, as in VQ4DiT; embedders and the last
    layer stay. The modulation is weight-only: it runs once per sample and multiplies all that follows.
    """

    kind: Literal["vq"] = "vq"
    not_after: ClassVar[frozenset[str]] = frozenset({"vq", "quantize"})
    not_before: ClassVar[frozenset[str]] = frozenset({"smooth"})  # folding needs float weights
    needs_calls: ClassVar[bool] = True

    bits: Literal[2, 3] = Field(
        default=2, description="a weight, without codebooks and scales: 256 codewords of 4, or 64 of 2"
    )
    modulation_bits: Literal[2, 3] | None = Field(
        default=None, description="of the modulation linears; null: like the others, as in the paper"
    )
    activations: Literal["int8", "none"] = Field(
        default="int8", description="int8: per token, dynamic, symmetric; none: weight-only"
    )
    rounding: Literal["nearest", "gptq"] = Field(
        default="gptq",
        description="gptq: later sub-vectors make up for the error of earlier ones (GPTVQ)",
    )
    weigh_channels: bool = Field(
        default=True,
        description="k-means weighs input channels by their mean square in the recorded calls",
    )
    iterations: int = Field(default=ITERATIONS, ge=1, description="of Lloyd at most; 100 in the paper")
    rows: int = Field(default=16, ge=1, description="of a recorded call's batch trained on at a time")
    blocks: BlockTuning | None = Field(
        default=BlockTuning(), description="block-wise calibration of codebooks and assignments; null: none"
    )
    finetune: Training | None = Field(
        default=Training(steps=600, calls=2, learning_rate=5e-3),
        description="end-to-end tuning of codebooks, scales and biases, assignments fixed; rates are "
        "relative to the size of the parameters; null: none",
    )
    keep: tuple[Role, ...] = Field(
        default=(Role.EMBEDDER, Role.FINAL, Role.OTHER), description="roles that stay as they are"
    )
    skip: tuple[str, ...] = Field(
        default=(), description="layers that stay as they are, by name pattern (* and ?)"
    )
    seed: int = Field(default=0, ge=0, description="of k-means++ and the order of the calls")

    @model_validator(mode="after")
    def _one_choice_of_codes(self) -> VectorQuantize:
        if self.rounding == "gptq" and self.blocks is not None and self.blocks.candidates > 1:
            raise InputError(
                f"vq.blocks.candidates: {self.blocks.candidates} codewords nearest to the weight would undo "
                "what rounding: gptq has chosen; set candidates: 1, or rounding: nearest"
            )
        return self

    def layers(self, anatomy: Anatomy, transformer: nn.Module) -> dict[str, VectorLayer]:
        """Every linear that this stage replaces and how it is stored, by full name, in the model's order.

        Raises:
            InputError: a ``skip`` pattern that matches no layer, a layer that the format cannot hold, or no
                layer left.
        """
        roles = anatomy.linears(transformer)
        plain = [plain_name(name) for name in roles]
        for pattern in self.skip:
            if not any(fnmatchcase(name, pattern) for name in plain):
                closest = ", ".join(difflib.get_close_matches(pattern, plain, n=3, cutoff=0.0))
                raise InputError(f'vq.skip: "{pattern}" matches no layer; closest: {closest}')
        found: dict[str, VectorLayer] = {}
        for name, role in roles.items():
            linear = transformer.get_submodule(name)
            skipped = role in self.keep or any(fnmatchcase(plain_name(name), p) for p in self.skip)
            if skipped or not isinstance(linear, nn.Linear):
                continue
            modulation = role is Role.MODULATION
            format = get_format(FORMAT_OF_BITS[(self.modulation_bits if modulation else None) or self.bits])
            check_vectors(linear.out_features, linear.in_features, format, name)
            found[name] = VectorLayer(format, "none" if modulation else self.activations)
        if not found:
            raise InputError("vq: every layer is kept or skipped; shorten vq.keep or vq.skip")
        return found

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """Put empty layers of the right formats into ``skeleton``; raises as :meth:`layers`."""
        for name, layer in self.layers(denoiser.anatomy, skeleton).items():
            linear = cast(nn.Linear, skeleton.get_submodule(name))
            empty = QuantizedLinear.empty(
                linear.in_features,
                linear.out_features,
                layer.format,
                linear.in_features,
                layer.activation,
                bias=linear.bias is not None,
                device="meta",
            )
            replace_module(skeleton, linear, empty)

    def apply(self, denoiser: Denoiser, statistics: Mapping[Any, Tensor]) -> None:
        """Refused: without recorded calls there is nothing to calibrate on. See :meth:`apply_calls`."""
        raise InputError("vq: needs recorded calls; run it through a recipe, or use apply_calls")

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Any, Tensor], calls: Sequence[Call]
    ) -> None:
        """Quantize, calibrate and tune ``denoiser.transformer`` in place.

        Memory beside the model and the calls' outputs: the hidden states of all calls twice (teacher and
        student), one block's weights and candidates, and in the end-to-end tuning the gradients of one call.

        Raises:
            InputError: before anything changes: see :meth:`layers`; no calls; weights not finite.
            StageError: a loss is not finite.
        """
        transformer = denoiser.transformer
        layers = self.layers(denoiser.anatomy, transformer)
        if self.finetune is not None and self.finetune.features:
            raise InputError(
                "vq.finetune.features: the teacher's blocks are gone when the tuning starts; set it to 0, "
                "vq.blocks compares the blocks"
            )
        if not calls:
            raise InputError("vq: no recorded calls; set calibration.samples and calibration.steps")
        for name in layers:
            if not bool(torch.isfinite(transformer.get_submodule(name).weight).all()):
                raise InputError(
                    f"{name}.weight holds NaN or infinite values; give a checkpoint with finite weights"
                )
        plan = VectorPlan(
            layers=layers,
            rounding=self.rounding,
            weigh_channels=self.weigh_channels,
            iterations=self.iterations,
            blocks=self.blocks,
            finetune=self.finetune,
            seed=self.seed,
        )
        compress(denoiser, plan, split_calls(calls, self.rows))
