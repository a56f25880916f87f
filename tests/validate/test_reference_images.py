import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditpress.errors import InputError
from ditpress.validate.reference import MNIST_TEST, load_reference


def read_all(path: Path, shape: tuple[int, int, int], batch_size: int = 2) -> torch.Tensor:
    return torch.cat(list(load_reference(path).batches(shape, batch_size)))


def test_grey_npz_comes_back_pixel_by_pixel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    path = tmp_path / "digits.npz"
    np.savez_compressed(path, images=images, labels=np.zeros(5, np.uint8))
    reference = load_reference(path)
    assert (reference.name, reference.count, reference.batch_count(2)) == ("digits", 5, 3)
    assert reference.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = torch.from_numpy(images.astype(np.float32) / 255)[:, None]
    assert torch.equal(read_all(path, (1, 28, 28)), expected)
    assert torch.equal(read_all(path, (3, 28, 28)), expected.expand(-1, 3, -1, -1))


def test_colour_npz_keeps_its_channels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", images=images)
    expected = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    assert torch.equal(read_all(tmp_path / "c.npz", (3, 8, 8)), expected)


def test_bundled_digits_are_the_mnist_test_set() -> None:
    reference = load_reference(MNIST_TEST)
    assert (reference.name, reference.count) == ("mnist-test", 10000)
    with np.load(MNIST_TEST) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    # digits per class of the test set as published by LeCun et al.
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    last = reference.read(9998, 10000, (1, 28, 28))
    assert torch.equal((last[:, 0] * 255).round().to(torch.uint8), torch.from_numpy(images[-2:]))


def test_folder_is_read_in_order_and_cropped_to_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200  # the middle third survives the crop to a square
    Image.fromarray(wide).save(tmp_path / "b.png")
    Image.fromarray(np.full((10, 10), 50, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    images = read_all(tmp_path, (1, 10, 10))
    assert torch.equal(images[0], torch.full((1, 10, 10), 50 / 255))
    assert torch.equal(images[1], torch.full((1, 10, 10), 200 / 255))


def test_folder_hash_follows_content_and_names(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    first = load_reference(tmp_path).sha256
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    second = load_reference(tmp_path).sha256
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "b.png")
    assert len({first, second, load_reference(tmp_path).sha256}) == 3


def test_what_is_no_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_reference(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images in it"):
        load_reference(tmp_path)
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 4, 4), np.float32))
    with pytest.raises(InputError, match="expected uint8"):
        load_reference(tmp_path / "floats.npz")
    np.savez(tmp_path / "other.npz", pictures=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(InputError, match="no array 'images'"):
        load_reference(tmp_path / "other.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "floats.npz").read_bytes()[:60])
    with pytest.raises(InputError, match=r"cut\.npz"):
        load_reference(tmp_path / "cut.npz")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        read_all(tmp_path / "broken", (1, 4, 4))


def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    reference = load_reference(tmp_path)
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: was changed"):
        reference.read(0, 1, (1, 4, 4))
