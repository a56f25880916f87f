"""Image and text features from a CLIP model: the one network behind all feature figures."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor
from transformers.utils import logging as transformers_logging

from ditpress.errors import InputError
from ditpress.files import sha256_file
from ditpress.load.zoo import zoo_path
from ditpress.progress import track
from ditpress.validate.environment import device_name

BATCH_SIZE = 256
SPATIAL_GRID, SPATIAL_CHANNELS = 4, 4
RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, torch's names


class FeatureExtractor:
    """A ``transformers`` CLIPModel folder (model and processor) as a feature extractor.

    ``features`` are the projected image embeddings *before* L2 normalisation. FID and KID compare
    distributions in a space where distance has a meaning: normalising would throw the length of the
    embedding away and squeeze the features onto a sphere, which the Gaussian of FID describes badly.
    CLIP features for FID follow Kynkäänniemi et al., "The Role of ImageNet Classes in Fréchet Inception
    Distance", ICLR 2023. CLIP score normalises by itself.

    Attributes:
        name: folder name, for the report.
        sha256: hash over the weight files; figures of two extractors must not be compared.
        settings: what decides the bits of features beside the weights: configurations, library, device.
        num_features: length D of a feature vector.
    """

    def __init__(self, folder: str | Path | None = None, *, device: str | torch.device = "cpu") -> None:
        """Load the model in float32; without a folder the bundled ``mnist-clip``.

        Raises:
            InputError: the folder is missing, holds no safetensors weights, or is not a CLIP model.
        """
        self.folder = zoo_path("mnist-clip") if folder is None else Path(folder)
        self.name = self.folder.name
        self.sha256 = _weights_sha256(self.folder)
        try:
            with _no_bar():
                model, loading = CLIPModel.from_pretrained(
                    self.folder, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
            processor = CLIPProcessor.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"extractor {self.folder}: cannot load it as a CLIP model ({reason}); "
                "expected a folder of CLIPModel.save_pretrained and CLIPProcessor.save_pretrained"
            ) from error
        if missing := loading["missing_keys"]:  # transformers would go on with random weights
            raise InputError(
                f"extractor {self.folder}: {len(missing)} weights of a CLIPModel are missing, "
                f"such as {min(missing)}; save the whole model with save_pretrained"
            )
        self.device = torch.device(device)
        self.settings = {path.name: sha256_file(path) for path in sorted(self.folder.glob("*.json"))}
        self.settings |= {"transformers": transformers.__version__, "device": device_name(self.device)}
        self.model = model.float().eval().requires_grad_(False).to(self.device)
        self.tokenizer = processor.tokenizer
        self.num_features: int = model.config.projection_dim
        self._geometry = _Geometry(processor.image_processor)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
        )

    @torch.inference_mode()
    def features(
        self,
        images: Tensor | Iterable[Tensor],
        *,
        batch_size: int = BATCH_SIZE,
        description: str = "image features",
        total: int | None = None,
    ) -> Tensor:
        """Unnormalised projected image embeddings.

        Args:
            images: float [n, C, H, W] in [0, 1], C = 1 or 3; or an iterable of such batches.
            batch_size: images per forward pass, where ``images`` is one tensor.
            description: text of the progress bar.
            total: number of batches, where ``images`` is an iterable without a length.

        Returns:
            float32 [n, D] on the CPU.
        """
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        parts = [
            self.model.get_image_features(
                pixel_values=self.preprocess(batch), return_dict=True
            ).pooler_output.cpu()
            for batch in track(batches, description, total)
        ]
        if not parts:
            raise InputError("image features: no images given; expected at least one")
        return torch.cat(parts)

    @torch.inference_mode()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Unnormalised projected text embeddings, float32 [n, D] on the CPU; equal captions run once."""
        unique = list(dict.fromkeys(captions))
        length = self.model.config.text_config.max_position_embeddings
        rows = []
        for start in track(range(0, len(unique), BATCH_SIZE), "caption features"):
            tokens = self.tokenizer(
                unique[start : start + BATCH_SIZE],
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(self.device)
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], return_dict=True
            )
            rows.append(output.pooler_output.cpu())
        position = {caption: index for index, caption in enumerate(unique)}
        return torch.cat(rows)[[position[caption] for caption in captions]]

    @torch.inference_mode()
    def patch_features(self, images: Tensor) -> list[Tensor]:
        """Outputs of every layer of the vision tower at the patches.

        Args:
            images: float [n, C, H, W] in [0, 1], one batch.

        Returns:
            one float32 [n, patches, width] per layer, without the class token.
        """
        output = self.model.vision_model(pixel_values=self.preprocess(images), output_hidden_states=True)
        return [hidden[:, 1:] for hidden in output.hidden_states[1:]]

    @torch.inference_mode()
    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``features`` of one batch, and features that still know where, by one pass of the network.

        sFID (Nash et al. 2021) takes the first channels of a middle layer of Inception-v3 for FID; here it is
        :data:`SPATIAL_CHANNELS` of the middle layer of the vision tower, its patches averaged to
        :data:`SPATIAL_GRID` x :data:`SPATIAL_GRID` cells.

        Args:
            images: float [n, C, H, W] in [0, 1], one batch.

        Returns:
            float32 [n, D] and [n, 64] on the CPU.
        """
        output = self.model.vision_model(pixel_values=self.preprocess(images), output_hidden_states=True)
        layers = output.hidden_states[1:]
        patches = layers[(len(layers) - 1) // 2][:, 1:]
        side = math.isqrt(patches.shape[1])
        grid = patches[:, : side * side, :SPATIAL_CHANNELS].transpose(1, 2).unflatten(2, (side, side))
        spatial = F.adaptive_avg_pool2d(grid, SPATIAL_GRID).flatten(1)
        return self.model.visual_projection(output.pooler_output).cpu(), spatial.cpu()

    def class_logits(self, features: Tensor, class_features: Tensor) -> Tensor:
        """Zero-shot logits [n, K] of image features [n, D] for the texts of K classes [K, D]."""
        cosine = F.normalize(features, dim=1) @ F.normalize(class_features, dim=1).T
        return self.model.logit_scale.exp().cpu() * cosine

    def preprocess(self, images: Tensor) -> Tensor:
        """Float [n, C, H, W] in [0, 1] to the model's size, channels and normalisation, [n, 3, h, w].

        Raises:
            InputError: not four dimensions, or neither 1 nor 3 channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(f"images {tuple(images.shape)}: expected [n, C, H, W] with 1 or 3 channels")
        images = images.to(self.device, torch.float32).expand(-1, 3, -1, -1)
        return (self._geometry(images) - self._mean) / self._std


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Without transformers' own bar for loading weights, which shows even for a file read in no time."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class _Geometry:
    """Resize and centre crop as the image processor of the folder asks for, in torch."""

    def __init__(self, image_processor: object) -> None:
        self.size = (
            _plain(getattr(image_processor, "size", None))
            if getattr(image_processor, "do_resize", True)
            else {}
        )
        crop = getattr(image_processor, "do_center_crop", False)
        self.crop = _plain(getattr(image_processor, "crop_size", None)) if crop else {}
        resample = int(getattr(image_processor, "resample", 3))
        if resample not in RESAMPLING:
            raise InputError(
                f"extractor: PIL resampling {resample} is not known; expected one of {sorted(RESAMPLING)}"
            )
        self.mode = RESAMPLING[resample]

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if "shortest_edge" in self.size:
            ratio = self.size["shortest_edge"] / min(height, width)
            target = (int(height * ratio), int(width * ratio))
        else:
            target = (self.size.get("height", height), self.size.get("width", width))
        if target != (height, width):
            smooth = self.mode != "nearest-exact"
            images = F.interpolate(images, target, mode=self.mode, antialias=smooth).clamp(0, 1)
        if not self.crop:
            return images
        rows, columns = self.crop["height"], self.crop["width"]
        short = (max(0, rows - target[0]), max(0, columns - target[1]))
        if any(short):  # an image narrower than the crop is padded with black, as the processor does
            top, left = math.ceil(short[0] / 2), math.ceil(short[1] / 2)
            images = F.pad(images, (left, short[1] - left, top, short[0] - top))
        top, left = (images.shape[-2] - rows) // 2, (images.shape[-1] - columns) // 2
        return images[..., top : top + rows, left : left + columns]


def _plain(size: object) -> dict[str, int]:
    """Whatever size class the processor uses, as a dict of what is set."""
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}  # type: ignore[call-overload]


def _weights_sha256(folder: Path) -> str:
    if not folder.is_dir():
        raise InputError(
            f"extractor {folder}: no such folder; expected a folder with a CLIPModel and its processor"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"extractor {folder}: no .safetensors weights in it; save the CLIPModel with save_pretrained"
        )
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
