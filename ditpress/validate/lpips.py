"""LPIPS with its trained weights, on AlexNet or VGG16 as torchvision publishes them.

The weights of the layers (version 0.1) come with torchmetrics, those of the network from a file: the state
dict of torchvision's ``alexnet`` or ``vgg16``, or of any model with the same names, as .pth or .safetensors.
"""

from __future__ import annotations

import importlib.resources
import math
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.files import sha256_file
from ditpress.load.hub import local_file
from ditpress.progress import track
from ditpress.validate.paired import BATCH_SIZE, pairs_of

# Convolutions as (out channels, kernel, stride, padding), each with its ReLU; "pool": kernel, stride 2;
# "tap": the features so far are compared.
Layers = tuple[tuple[int, int, int, int] | tuple[str, int] | str, ...]
ALEX: Layers = (
    *((64, 11, 4, 2), "tap", ("pool", 3), (192, 5, 1, 2), "tap", ("pool", 3)),
    *((384, 3, 1, 1), "tap", (256, 3, 1, 1), "tap", (256, 3, 1, 1), "tap"),
)
VGG: Layers = (
    *((64, 3, 1, 1), (64, 3, 1, 1), "tap", ("pool", 2), (128, 3, 1, 1), (128, 3, 1, 1), "tap", ("pool", 2)),
    *((256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "tap", ("pool", 2)),
    *((512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "tap", ("pool", 2)),
    *((512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "tap"),
)
NETWORKS = {11: ("alex", ALEX, 31), 3: ("vgg", VGG, 16)}  # by first kernel: name, layers, least image side
EPSILON = 1e-8
# Mean and standard deviation of ImageNet for images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """Learned perceptual distance of pairs of images (Zhang et al. 2018, eq. 1).

    d = Σ_layers mean_hw Σ_c w_c (f̂ - ĝ)²_c, where f̂ and ĝ are features of unit length at every position.

    Attributes:
        name: "alex" or "vgg", and the file.
        sha256: of the file of the network; figures of other weights must not be compared.
        num_features: channels that are compared.
    """

    def __init__(self, weights: str | Path, *, device: str | torch.device = "cpu") -> None:
        """Load the network from a file or ``hf:OWNER/NAME/FILE``.

        Raises:
            InputError: the file is missing, or holds neither AlexNet nor VGG16.
        """
        path = local_file(weights)
        state = _read(path)
        first = state.get("features.0.weight", torch.zeros(0))
        known = NETWORKS.get(first.shape[-1]) if first.ndim == 4 else None
        if known is None:
            raise InputError(
                f"LPIPS weights {path}: neither AlexNet nor VGG16; expected the state dict of torchvision's "
                "(features.0.weight, …)"
            )
        net, layers, self.least_side = known
        self.device = torch.device(device)
        self.features, self.taps = _build(layers)
        try:
            self.features.load_state_dict(
                {
                    name.removeprefix("features."): x
                    for name, x in state.items()
                    if name.startswith("features.")
                }
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"LPIPS weights {path}: not those of {net} ({reason})") from error
        self.features.eval().requires_grad_(False).to(self.device)
        self.weights = [weight.to(self.device) for weight in _layer_weights(net)]
        self.name = f"{net} {path.stem}"
        self.sha256 = sha256_file(path)
        self.num_features = sum(weight.numel() for weight in self.weights)

    @torch.inference_mode()
    def distances(self, original: Tensor, compressed: Tensor) -> Tensor:
        """LPIPS of every pair, float64 [n].

        Args:
            original, compressed: float [n, C, H, W] in [0, 1], C = 1 or 3.

        Raises:
            InputError: other shapes, or images smaller than the network takes.
        """
        parts = []
        count = math.ceil(len(original) / BATCH_SIZE)
        for a, b in track(pairs_of(original, compressed), "LPIPS", count):
            distance = torch.zeros(len(a), dtype=torch.float64)
            for f, g, weight in zip(self._unit(a), self._unit(b), self.weights, strict=True):
                squares = (f - g).square() * weight[:, None, None]
                distance += squares.sum(1).mean((1, 2)).double().cpu()
            parts.append(distance)
        return torch.cat(parts)

    def _unit(self, images: Tensor) -> list[Tensor]:
        """Features at the taps, of unit length at every position."""
        side = min(images.shape[-2:])
        if images.shape[1] not in (1, 3) or side < self.least_side:
            raise InputError(
                f"LPIPS: images {tuple(images.shape)}; {self.name} takes 1 or 3 channels and at least "
                f"{self.least_side} x {self.least_side} pixels: without --lpips the distance is that of CLIP"
            )
        x = 2 * images.to(self.device, torch.float32).expand(-1, 3, -1, -1) - 1
        shift, scale = (x.new_tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))
        x = (x - shift) / scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x / (EPSILON + x.square().sum(1, keepdim=True)).sqrt())
        return found


def _build(layers: Layers) -> tuple[nn.Sequential, frozenset[int]]:
    """The modules with torchvision's indices, and the indices whose outputs are compared."""
    modules: list[nn.Module] = []
    taps, channels = set(), 3
    for layer in layers:
        if layer == "tap":
            taps.add(len(modules) - 1)
        elif layer[0] == "pool":
            modules.append(nn.MaxPool2d(int(layer[1]), 2))
        else:
            out, kernel, stride, padding = (int(number) for number in layer)
            modules += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
            channels = out
    return nn.Sequential(*modules), frozenset(taps)


def _layer_weights(net: str) -> list[Tensor]:
    """What the authors trained on human judgements: a weight for every channel of every tap, [C] each."""
    file = importlib.resources.files("torchmetrics.functional.image") / "lpips_models" / f"{net}.pth"
    with importlib.resources.as_file(file) as path:
        state = torch.load(path, weights_only=True, map_location="cpu")
    return [state[f"lin{index}.model.1.weight"].flatten().float() for index in range(len(state))]


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"LPIPS weights {path}: no such file; give torchvision's AlexNet or VGG16")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"LPIPS weights {path}: cannot be read ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"LPIPS weights {path}: no state dict; expected names and tensors")
    return state
