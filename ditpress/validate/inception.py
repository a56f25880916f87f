"""Inception-v3, the network of published FID, sFID and Inception Score; the extra ``inception``.

The network and its exact preprocessing are torch-fidelity's. Its weights come from a file, the one that
torch-fidelity publishes or any of the same layout, here or on the hub.
"""

from __future__ import annotations

import hashlib
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.load.hub import local_file
from ditpress.validate.environment import device_name

SPATIAL_CHANNELS = 7
EXTRA = "install it with: pip install 'ditpress[inception]'"


class InceptionExtractor:
    """Features of Inception-v3.

    Attributes:
        name: of the weights file.
        sha256: of the weights file; figures of other weights must not be compared.
        settings: what decides the bits of features beside the weights: library, device.
        num_features: 2048, the pooled features behind FID.
    """

    num_features = 2048

    def __init__(self, weights: str | Path, *, device: str | torch.device = "cpu") -> None:
        """Load torch-fidelity's network with the weights of a file, or of ``hf:OWNER/NAME/FILE``.

        Raises:
            InputError: torch-fidelity is missing, the file is missing, or it holds other weights.
        """
        path = local_file(weights)
        if not path.is_file():
            raise InputError(
                f"Inception weights {path}: no such file; give torch-fidelity's weights-inception .pth"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
            raise InputError(f"Inception-v3 needs torch-fidelity ({error}); {EXTRA}") from error
        self.name = path.stem
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.device = torch.device(device)
        self.settings = {"torch-fidelity": version("torch-fidelity"), "device": device_name(self.device)}
        names = [str(self.num_features), "logits_unbiased"]
        try:
            torch.load(path, weights_only=True, map_location="meta")  # its own loading would run any pickle
            self.model: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3", names, feature_extractor_weights_path=str(path)
            ).to(self.device)
        except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise InputError(
                f"Inception weights {path}: cannot be loaded ({str(error).splitlines()[0]}); expected the "
                "state dict of torch-fidelity's Inception-v3"
            ) from error

    @torch.inference_mode()
    def describe(self, images: Tensor) -> dict[str, Tensor]:
        """``features`` [n, 2048], ``logits`` [n, 1008] and ``spatial`` [n, 2023] of one batch.

        ``spatial`` is what sFID takes: the first seven channels of the 1x1 branch in the seventh mixed block,
        17 x 17, channels last: ``mixed_6/conv:0`` of the TensorFlow graph in OpenAI's ADM evaluation, which
        is the branch after its batch norm and ReLU. Moments of ADM's reference batches have this order.

        Args:
            images: float [n, C, H, W] in [0, 1], C = 1 or 3.
        """
        spatial: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
            spatial.append(output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))

        pixels = (images.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8).to(self.device)
        block: Any = self.model.get_submodule("Mixed_6d.branch1x1")
        handle = block.register_forward_hook(keep)
        try:
            features, logits = self.model(pixels)
        finally:
            handle.remove()
        found = {"features": features, "logits": logits, "spatial": spatial[0]}
        return {name: tensor.float().cpu() for name, tensor in found.items()}
