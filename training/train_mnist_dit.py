"""Train ``zoo:mnist-dit``: a class-conditional pixel-space DiT on MNIST.

The network is diffusers' ``DiTTransformer2DModel`` (adaLN-Zero; Peebles & Xie, "Scalable Diffusion
Models with Transformers", ICCV 2023), trained with v-prediction (Salimans & Ho, "Progressive
Distillation", ICLR 2022) on a cosine schedule. As in the official DiT, one timestep embedder and one
class table serve all blocks; diffusers stores a copy of them in every block.

    python training/train_mnist_dit.py --data mnist.npz --out ditpress/data/mnist-dit
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch.nn import functional as F

CONFIG = {
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "num_layers": 6,
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": 28,
    "patch_size": 4,
    "num_embeds_ada_norm": 10,
    "norm_type": "ada_norm_zero",
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": True,
    "timestep_spacing": "trailing",
}
NULL_CLASS = CONFIG["num_embeds_ada_norm"]


def build_model() -> DiTTransformer2DModel:
    """The transformer with the embedders of block 0 shared by all blocks, initialised as in DiT."""
    model = DiTTransformer2DModel(**CONFIG)
    shared = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb = shared
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.normal_(shared.class_embedder.embedding_table.weight, std=0.02)
    torch.nn.init.normal_(shared.timestep_embedder.linear_1.weight, std=0.02)
    torch.nn.init.normal_(shared.timestep_embedder.linear_2.weight, std=0.02)
    # adaLN-Zero: every block starts as the identity, the network starts at zero output.
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
    for linear in (model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(linear.weight)
    # In eval mode the label embedder leaves the labels alone: they are dropped once per sample in
    # the training loop, not independently by each of the blocks. The model has no other dropout.
    return model.eval()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then cosine decay to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def save(model: DiTTransformer2DModel, out: Path, record: dict) -> None:
    """Write a diffusers pipeline folder in 16 bit, and the training record beside it."""
    transformer = copy.deepcopy(model)
    for block in transformer.transformer_blocks[1:]:  # safetensors stores no shared tensors
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    transformer.half().save_pretrained(out / "transformer")
    DDIMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "PixelDiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz with train_x, train_y")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with np.load(args.data) as data:
        images = torch.from_numpy(data["train_x"].astype(np.float32) / 127.5 - 1)[:, None].to(device)
        labels = torch.from_numpy(data["train_y"].astype(np.int64)).to(device)

    model = build_model().to(device)
    ema = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, betas=(0.9, 0.99))
    scheduler = DDIMScheduler(**SCHEDULER)
    started = time.perf_counter()
    loss_sum = 0.0
    order = torch.empty(0, dtype=torch.long)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        if len(order) < args.batch_size:
            order = torch.randperm(len(images))
        index, order = order[: args.batch_size].to(device), order[args.batch_size :]
        x, y = images[index], labels[index]
        y = torch.where(torch.rand(len(y), device=device) < args.label_dropout, NULL_CLASS, y)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),), device=device)
        noise = torch.randn_like(x)
        target = scheduler.get_velocity(x, noise, t)
        with torch.autocast(device, torch.bfloat16):
            v = model(scheduler.add_noise(x, noise, t), timestep=t, class_labels=y).sample
        loss = F.mse_loss(v.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        loss_sum += loss.item()
        last = step + 1 == args.steps
        if (step + 1) % 200 == 0 or last:
            seconds = time.perf_counter() - started
            print(f"step {step + 1} loss {loss_sum / (step % 200 + 1):.4f} {seconds:.0f} s", flush=True)
            loss_sum = 0.0
        if (step + 1) % 1000 == 0 or last:
            record = vars(args) | {
                "data": args.data.name,
                "out": None,
                "steps_done": step + 1,
                "seconds": round(time.perf_counter() - started),
                "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
                "torch": torch.__version__,
            }
            save(ema, args.out, {k: v for k, v in record.items() if v is not None})


if __name__ == "__main__":
    main()
