"""What is planted, where, and which rules must say so."""

from __future__ import annotations

from gate.plants import (
    Plant,
    fewer_steps,
    other_scheduler,
    scales_off,
    shipped,
    stale_onnx,
    swapped_channels,
    two_bits,
)

# One layer of each kind. Their rules on images alone would not do: one layer in 42 is seldom seen in them.
VALUES, MLP, MODULATION = (
    "transformer_blocks.4.attn1.to_v",
    "transformer_blocks.0.ff.net.2",
    "transformer_blocks.5.norm1.linear",
)
LAYER = frozenset({"layer_sqnr_db"})

PLANTS = (
    Plant("scales", f"scales of {VALUES} 5 % too large", shipped(VALUES, scales_off), LAYER),
    Plant("two-bits", f"{MLP} at 2 bits", shipped(MLP, two_bits), LAYER),
    Plant("swapped", f"two channels of {MODULATION} swapped", shipped(MODULATION, swapped_channels), LAYER),
    Plant("stale-onnx", "ONNX file older than the checkpoint", stale_onnx, frozenset({"parity_margin_db"})),
    Plant("scheduler", "another noise schedule in OUT/model", other_scheduler, setting="scheduler_sha256"),
    Plant("steps", "half of the denoising steps", fewer_steps, setting="steps"),
)
EVERYWHERE = {
    "scales 5 % too large": scales_off,
    "2 bits": two_bits,
    "two channels swapped": swapped_channels,
}
SEEDS = range(1, 11)
