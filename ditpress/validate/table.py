"""What is kept of images: one row of features and paired figures for each, a block of images at a time.

A table is a dict of tensors with one row per image. Of one set of images:

```
features       [n, D]   behind FID, KID, precision and recall, and the Inception Score
spatial        [n, S]   behind sFID
clip_features  [n, E]   behind CMMD and CLIP score, where Inception-v3 gives the features above
logits         [n, K]   where Inception-v3 gives them
clip           [n]      100 · cosine of image and caption
kernel_means   [n]      of the reference: how near each image is to all of them, behind CMMD
```

Of same-seed pairs the same of both sides, ``original.features`` and so on, and ``squared_error``, ``ssim``
and ``lpips`` [n]. Rows of several blocks are put together by :func:`join`; images are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ditpress.errors import InputError, StageError
from ditpress.validate import paired
from ditpress.validate.extractor import BATCH_SIZE, FeatureExtractor
from ditpress.validate.inception import InceptionExtractor
from ditpress.validate.lpips import Lpips

SIDES = ("original", "compressed")
Table = dict[str, Tensor]


@dataclass(frozen=True)
class Networks:
    """The networks behind the figures; where another is not given, CLIP's features stand in for its own."""

    clip: FeatureExtractor
    inception: InceptionExtractor | None = None
    lpips: Lpips | None = None

    @property
    def main(self) -> FeatureExtractor | InceptionExtractor:
        """Behind FID, KID, precision and recall."""
        return self.clip if self.inception is None else self.inception


def describe(images: Tensor, networks: Networks, captions: Sequence[str] | None = None) -> Table:
    """The rows of one set of images.

    Args:
        images: float [n, C, H, W] in [0, 1].
        captions: one per image; None: no ``clip``.
    """
    clip = networks.clip
    described = [clip.describe(batch) for batch in images.split(BATCH_SIZE)]
    embeddings, spatial = (torch.cat(parts) for parts in zip(*described, strict=True))
    if networks.inception is None:
        table = {"features": embeddings, "spatial": spatial}
    else:
        table = {**networks.inception.describe(images), "clip_features": embeddings}
    if captions is not None:
        texts = clip.text_features(captions)
        table["clip"] = 100 * F.cosine_similarity(embeddings.double(), texts.double(), dim=1)
    return table


def tabulate(
    original: Tensor, compressed: Tensor, networks: Networks, captions: Sequence[str] | None = None
) -> Table:
    """The rows of same-seed pairs.

    Args:
        original, compressed: float [n, C, H, W] in [0, 1]; image i of both from the same seed.
        captions: one per pair; None: no CLIP score.

    Raises:
        InputError: shapes or numbers of images and captions do not fit together.
        StageError: the samples hold NaN or infinities: the model that drew them is broken.
    """
    _check(original, compressed, captions)
    table: Table = {}
    for side, images in zip(SIDES, (original, compressed), strict=True):
        table |= {f"{side}.{name}": rows for name, rows in describe(images, networks, captions).items()}
    table["squared_error"] = paired.squared_errors(original, compressed)
    table["ssim"] = paired.structural_similarities(original, compressed)
    if networks.lpips is None:
        table["lpips"] = paired.feature_distances(networks.clip, original, compressed)
    else:
        table["lpips"] = networks.lpips.distances(original, compressed)
    return table


def join(tables: Iterable[Table]) -> Table:
    """The rows of all tables, in order."""
    parts = list(tables)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def clip_features(table: Table) -> Tensor:
    """CLIP's features [n, E], whichever network is the main one."""
    return table.get("clip_features", table["features"])


def side(table: Table, name: str) -> Table:
    """The rows of one side of the pairs."""
    return {key.split(".", 1)[1]: rows for key, rows in table.items() if key.startswith(f"{name}.")}


def _check(original: Tensor, compressed: Tensor, captions: Sequence[str] | None) -> None:
    if original.shape != compressed.shape or original.ndim != 4 or not len(original):
        raise InputError(
            f"samples {tuple(original.shape)} and {tuple(compressed.shape)}: expected two equal shapes "
            "[n, C, H, W]: two models that draw images of the same size"
        )
    if captions is not None and len(captions) != len(original):
        raise InputError(f"{len(captions)} captions for {len(original)} samples; expected one per sample")
    for name, images in zip(SIDES, (original, compressed), strict=True):
        if not torch.isfinite(images).all():
            raise StageError(
                f"samples of the {name} model hold NaN or infinities; its weights or kernels are broken"
            )
