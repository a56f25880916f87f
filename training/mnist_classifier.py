"""A small digit classifier: the judge of what a model of digits draws.

python training/mnist_classifier.py --data mnist.npz       # train it, print its test accuracy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "mnist-classifier.safetensors"


class DigitClassifier(nn.Module):
    """Images [n, 1, 28, 28] in [0, 1] -> logits [n, 10]; 111 k parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 96, 3, padding=1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(96 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def load_classifier() -> DigitClassifier:
    """The trained classifier that lies beside this file, in eval mode."""
    model = DigitClassifier()
    model.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return model.eval()


@torch.inference_mode()
def accuracy(model: DigitClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of ``images`` [n, 1, 28, 28] in [0, 1] that are recognised as their label."""
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return (predicted == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="mnist.npz with train_x, train_y, test_x, test_y"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    with np.load(args.data) as data:
        train_x = torch.from_numpy(data["train_x"].astype(np.float32) / 255)[:, None]
        train_y = torch.from_numpy(data["train_y"].astype(np.int64))
        test_x = torch.from_numpy(data["test_x"].astype(np.float32) / 255)[:, None]
        test_y = torch.from_numpy(data["test_y"].astype(np.int64))
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = 128
    steps = args.epochs * (len(train_x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(args.epochs):
        model.train()
        for index in torch.randperm(len(train_x))[: steps // args.epochs * batch].split(batch):
            loss = F.cross_entropy(model(train_x[index]), train_y[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch} test accuracy {accuracy(model.eval(), test_x, test_y):.4f}", flush=True)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, WEIGHTS)
    print(f"{WEIGHTS.name}: test accuracy in 16 bit {accuracy(load_classifier(), test_x, test_y):.4f}")


if __name__ == "__main__":
    main()
