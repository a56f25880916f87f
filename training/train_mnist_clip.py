"""Train ``zoo:mnist-clip``: a tiny CLIPModel on MNIST digits and captions made from them.

It is the embedded default extractor: the CLIP score needs a model that reads captions of digits, FID
needs features that see more than the class. So the captions name the digit and, in part of the
batches, its stroke and its slant, both measured on the image. The loss is the symmetric contrastive
loss of Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(ICML 2021), with every pair of equal captions in a batch counted as positive (Khosla et al.,
"Supervised Contrastive Learning", NeurIPS 2020, eq. 2).

    python training/train_mnist_clip.py --data mnist.npz --out ditpress/data/mnist-clip
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES = ("thin", "medium", "bold")
SLANTS = ("leaning left", "upright", "leaning right")
PLAIN = ("a photo of the digit {d}", "a photo of {d}", "a handwritten {d}", "the digit {d}", "{d}")
MEAN, STD = 0.1307, 0.3081  # of the training images in [0, 1]


def caption(digit: int, stroke: int | None, slant: int | None, template: int) -> str:
    """The caption of one image; ``None`` leaves an attribute out."""
    text = PLAIN[template].format(d=DIGITS[digit])
    if stroke is not None:
        text += f" , {STROKES[stroke]}"
    if slant is not None:
        text += f" , {SLANTS[slant]}"
    return text


def attributes(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stroke and slant class (0, 1, 2: terciles over all images) of ``images`` [n, 28, 28] in [0, 1].

    Stroke is the ink per inked pixel's boundary, slant the shear that the second central moments
    give: mu11 / mu02 (Hu, "Visual pattern recognition by moment invariants", 1962).
    """
    ink = images.sum((1, 2)) + 1e-6
    y, x = np.mgrid[0:28, 0:28].astype(np.float64)
    cx = (images * x).sum((1, 2)) / ink
    cy = (images * y).sum((1, 2)) / ink
    dx, dy = x[None] - cx[:, None, None], y[None] - cy[:, None, None]
    shear = -(images * dx * dy).sum((1, 2)) / ((images * dy * dy).sum((1, 2)) + 1e-6)
    edges = np.abs(np.diff(images, axis=1)).sum((1, 2)) + np.abs(np.diff(images, axis=2)).sum((1, 2))
    width = ink / (edges + 1e-6)

    def terciles(v: np.ndarray) -> np.ndarray:
        return np.digitize(v, np.quantile(v, [1 / 3, 2 / 3])).astype(np.int64)

    return terciles(width), terciles(shear)


def build_processor() -> CLIPProcessor:
    """A CLIP tokenizer whose vocabulary holds the captions, and the image processor for 28x28."""
    corpus = [
        caption(d, s, w, t)
        for d in range(10)
        for s in (None, 0, 1, 2)
        for w in (None, 0, 1, 2)
        for t in range(len(PLAIN))
    ]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [chr(c) for c in range(33, 127)]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=512,
            end_of_word_suffix="</w>",
            initial_alphabet=alphabet,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
        ),
    )
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    for letter in alphabet:  # a letter that ends a word is a token of its own
        vocab.setdefault(letter + "</w>", len(vocab))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    clip_tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=clip_tokenizer)


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """About 0.7 M parameters."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 4,
        "num_channels": 3,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, same: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross entropy, equal weight on all positives; ``image``, ``text`` [n, d], ``same`` [n, n]."""
    logits = scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def zero_shot_accuracy(
    model: CLIPModel, processor: CLIPProcessor, pixels: torch.Tensor, labels: torch.Tensor
) -> float:
    """Share of images whose nearest caption "a photo of the digit ..." names their digit."""
    tokens = processor.tokenizer(
        [caption(d, None, None, 0) for d in range(10)], return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        text = F.normalize(model.get_text_features(**tokens.to(pixels.device)).pooler_output, dim=-1)
        image = torch.cat([model.get_image_features(b).pooler_output for b in pixels.split(1000)])
    return ((image @ text.T).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="mnist.npz with train_x, train_y, test_x, test_y"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with np.load(args.data) as data:
        raw = data["train_x"].astype(np.float32) / 255
        digits = data["train_y"].astype(np.int64)
        test = torch.from_numpy(data["test_x"].astype(np.float32) / 255)
        test_digits = torch.from_numpy(data["test_y"].astype(np.int64))
    strokes, slants = attributes(raw)

    def pixels(x: torch.Tensor) -> torch.Tensor:
        return ((x - MEAN) / STD)[:, None].expand(-1, 3, -1, -1).to(device)

    images = torch.from_numpy(raw)
    processor = build_processor()
    model = build_model(processor.tokenizer).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    batches = len(images) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * batches)
    started = time.perf_counter()
    for epoch in range(args.epochs):
        order = rng.permutation(len(images))
        for b in range(batches):
            index = order[b * args.batch_size : (b + 1) * args.batch_size]
            use_stroke, use_slant = rng.random() < 0.6, rng.random() < 0.6
            stroke = strokes[index] if use_stroke else np.zeros_like(index)
            slant = slants[index] if use_slant else np.zeros_like(index)
            key = torch.from_numpy(digits[index] * 9 + stroke * 3 + slant)
            texts = [
                caption(d, s if use_stroke else None, w if use_slant else None, rng.integers(len(PLAIN)))
                for d, s, w in zip(digits[index], stroke, slant, strict=True)
            ]
            tokens = processor.tokenizer(texts, return_tensors="pt", padding=True).to(device)
            with torch.autocast(device, torch.bfloat16):
                out_image = model.get_image_features(pixels(images[index])).pooler_output
                out_text = model.get_text_features(**tokens).pooler_output
            same = (key[:, None] == key[None]).float().to(device)
            loss = contrastive_loss(out_image.float(), out_text.float(), same, model.logit_scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=float(np.log(100)))  # as in CLIP, section 2.5
            if b % 20 == 0:
                seconds = time.perf_counter() - started
                print(f"epoch {epoch} batch {b}/{batches} loss {loss.item():.3f} {seconds:.0f} s", flush=True)

    model = model.eval().half()
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    accuracy = zero_shot_accuracy(model.float(), processor, pixels(test), test_digits.to(device))
    record = {
        "data": args.data.name,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "test_zero_shot_accuracy": round(accuracy, 4),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
