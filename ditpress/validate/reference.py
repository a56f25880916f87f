"""Real images to measure against: the bundled MNIST test digits, an .npz, a folder, a batch of ADM's."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditpress.errors import InputError
from ditpress.validate.metrics.frechet import Moments

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
IMAGES, MOMENTS, SPATIAL_MOMENTS = ("images", "arr_0"), ("mu", "sigma"), ("mu_s", "sigma_s")
MNIST_TEST = Path(__file__).parent.parent / "data" / "mnist-test.npz"


@dataclass(frozen=True)
class Reference:
    """A named, hashed set of real images that is read in batches.

    Attributes:
        name: for the report.
        sha256: hash of the content.
        count: number of images.
        read: ``read(start, stop, shape)`` gives images ``start..stop-1`` as float32 [n, C, H, W] in
            [0, 1], with ``shape`` = (C, H, W).
        moments, spatial_moments: of Inception-v3's pooled and spatial features, where the file brings them.
    """

    name: str
    sha256: str
    count: int
    read: Callable[[int, int, tuple[int, int, int]], Tensor]
    moments: Moments | None = None
    spatial_moments: Moments | None = None

    def batches(self, shape: tuple[int, int, int], batch_size: int = 256) -> Iterator[Tensor]:
        """All images in order, float32 [n, C, H, W] in [0, 1]; ``shape`` = (C, H, W) of the samples."""
        for start in range(0, self.count, batch_size):
            yield self.read(start, min(start + batch_size, self.count), shape)

    def batch_count(self, batch_size: int = 256) -> int:
        """How many batches :meth:`batches` yields."""
        return math.ceil(self.count / batch_size)


def load_reference(path: str | Path) -> Reference:
    """An ``.npz`` with uint8 ``images`` [n, H, W] or [n, H, W, 3], or a folder of image files.

    Also a reference batch of OpenAI's ADM evaluation: an ``.npz`` with images as ``arr_0`` and moments of
    Inception-v3's features as ``mu``, ``sigma``, ``mu_s``, ``sigma_s``, or with one of the two.

    Images of another size than the samples are cropped to the centre of the same aspect and resized
    (bicubic); colour is turned into grey, or grey repeated, where the samples ask for it.

    Raises:
        InputError: neither, unreadable, or empty.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path)
    raise InputError(f"reference {path}: no such folder of images or .npz file; give one with --reference")


def _from_npz(path: Path) -> Reference:
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (*IMAGES, *MOMENTS, *SPATIAL_MOMENTS) if name in arrays}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"reference {path}: cannot be read as .npz ({error})") from error
    moments, spatial_moments = (_moments(path, found, *names) for names in (MOMENTS, SPATIAL_MOMENTS))
    images = next((found[name] for name in IMAGES if name in found), None)
    if images is None and moments is None:
        raise InputError(
            f"reference {path}: no array 'images' can be read from it; expected 'images', or 'arr_0', 'mu' "
            "and 'sigma' of ADM's evaluation"
        )
    if images is None:
        images = np.zeros((0, 1, 1), np.uint8)
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (grey or colour) or not (len(images) or moments):
        raise InputError(
            f"reference {path}: images are {images.dtype} {images.shape}; "
            "expected uint8 [n, H, W] or [n, H, W, 3]"
        )

    def read(start: int, stop: int, shape: tuple[int, int, int]) -> Tensor:
        return torch.stack([_fit(Image.fromarray(image), shape) for image in images[start:stop]])

    digest = hashlib.sha256(data).hexdigest()
    return Reference(path.stem, digest, len(images), read, moments, spatial_moments)


def _moments(path: Path, arrays: dict[str, np.ndarray], mean: str, covariance: str) -> Moments | None:
    if mean not in arrays or covariance not in arrays:
        return None
    found = Moments(*(torch.from_numpy(arrays[name]).double() for name in (mean, covariance)))
    count = found.mean.numel()
    if found.mean.ndim != 1 or found.covariance.shape != (count, count):
        raise InputError(
            f"reference {path}: {mean} is {arrays[mean].shape}, {covariance} {arrays[covariance].shape}; "
            "expected [D] and [D, D]"
        )
    return found


def _from_folder(folder: Path) -> Reference:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"reference {folder}: no images in it; expected {', '.join(sorted(SUFFIXES))} files")
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in files]
    digest = hashlib.sha256()
    for path, of_file in zip(files, digests, strict=True):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(of_file)

    def read(start: int, stop: int, shape: tuple[int, int, int]) -> Tensor:
        wanted = zip(files[start:stop], digests[start:stop], strict=True)
        return torch.stack([_open(path, of_file, shape) for path, of_file in wanted])

    return Reference(folder.resolve().name, digest.hexdigest(), len(files), read)


def _open(path: Path, digest: bytes, shape: tuple[int, int, int]) -> Tensor:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).digest() != digest:
            raise InputError(
                f"reference image {path}: was changed while in use; run again when the folder is at rest"
            )
        with Image.open(io.BytesIO(data)) as image:
            return _fit(image, shape)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"reference image {path}: cannot be read ({error}); repair or remove it") from error


def _fit(image: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """One image as float32 [C, H, W] in [0, 1]."""
    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        scale = min(image.width / width, image.height / height)
        crop = (round(width * scale), round(height * scale))
        left, top = (image.width - crop[0]) // 2, (image.height - crop[1]) // 2
        box = (left, top, left + crop[0], top + crop[1])
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
