import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

from ditpress.errors import InputError
from ditpress.validate.extractor import FeatureExtractor


def uint8_images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_features_are_those_of_transformers_own_processor_and_model(
    clip_folder: Path, extractor: FeatureExtractor
) -> None:
    images = uint8_images(5, 28, 28)
    model, processor = (
        CLIPModel.from_pretrained(clip_folder).eval(),
        CLIPProcessor.from_pretrained(clip_folder),
    )
    pixels = processor.image_processor([Image.fromarray(i) for i in images], return_tensors="pt")[
        "pixel_values"
    ]
    with torch.inference_mode():
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(pooled)
    ours = extractor.features(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, batch_size=2)
    assert ours.shape == (5, extractor.num_features)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_preprocessing_resizes_and_crops_as_the_processor(
    clip_folder: Path, extractor: FeatureExtractor
) -> None:
    images = uint8_images(2, 60, 90)
    processor = CLIPProcessor.from_pretrained(clip_folder).image_processor
    expected = processor([Image.fromarray(i) for i in images], return_tensors="pt")["pixel_values"]
    ours = extractor.preprocess(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    # PIL rounds to whole grey levels after each of its two passes; std is 0.5 at least
    torch.testing.assert_close(ours, expected, atol=2 / 255 / 0.5, rtol=0)


def test_grey_images_count_as_three_equal_channels(extractor: FeatureExtractor) -> None:
    grey = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(extractor.features(grey), extractor.features(grey.repeat(1, 3, 1, 1)))


def test_batches_give_what_one_tensor_gives(extractor: FeatureExtractor) -> None:
    images = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    batches = (images[start : start + 3] for start in range(0, 7, 3))
    torch.testing.assert_close(extractor.features(batches), extractor.features(images), atol=1e-5, rtol=1e-5)


def test_text_features_are_those_of_each_caption_alone(
    clip_folder: Path, extractor: FeatureExtractor
) -> None:
    captions = ["one", "a longer caption of one", "one"]
    model, processor = (
        CLIPModel.from_pretrained(clip_folder).eval(),
        CLIPProcessor.from_pretrained(clip_folder),
    )
    rows = []
    with torch.inference_mode():
        for caption in captions:
            tokens = processor.tokenizer(caption, truncation=True, max_length=12, return_tensors="pt")
            rows.append(model.text_projection(model.text_model(input_ids=tokens["input_ids"]).pooler_output))
    torch.testing.assert_close(extractor.text_features(captions), torch.cat(rows), atol=1e-4, rtol=1e-4)


def test_patch_features_leave_the_class_token_out(extractor: FeatureExtractor) -> None:
    layers = extractor.patch_features(torch.rand(2, 3, 28, 28))
    assert [tuple(layer.shape) for layer in layers] == [(2, 16, 16)] * 2  # (28 / 7)^2 patches, width 16


def test_name_and_hash_identify_the_weights(clip_folder: Path, extractor: FeatureExtractor) -> None:
    assert extractor.name == "tiny-clip"
    weights = (clip_folder / "model.safetensors").read_bytes()
    assert extractor.sha256 == hashlib.sha256(weights).hexdigest()


def test_missing_folder_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        FeatureExtractor(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"no \.safetensors"):
        FeatureExtractor(tmp_path)


def test_a_truncated_checkpoint_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "broken"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot load it as a CLIP model"):
        FeatureExtractor(folder)


def test_a_checkpoint_with_missing_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "partial"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing, such as visual_projection\.weight"):
        FeatureExtractor(folder)


def test_images_of_two_channels_are_refused(extractor: FeatureExtractor) -> None:
    with pytest.raises(InputError, match="1 or 3 channels"):
        extractor.features(torch.rand(2, 2, 28, 28))


def test_one_pass_gives_the_features_and_the_grid_of_a_middle_layer(extractor: FeatureExtractor) -> None:
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    features, spatial = extractor.describe(images)
    torch.testing.assert_close(features, extractor.features(images))
    middle = extractor.patch_features(images)[0]  # of two layers; 4 x 4 patches are the cells
    torch.testing.assert_close(spatial, middle[:, :, :4].transpose(1, 2).flatten(1))


def test_class_logits_are_clips(extractor: FeatureExtractor) -> None:
    images, captions = torch.rand(3, 1, 28, 28), ["one", "a one"]
    found = extractor.class_logits(extractor.features(images), extractor.text_features(captions))
    tokens = extractor.tokenizer(captions, padding=True, return_tensors="pt")
    expected = extractor.model(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=extractor.preprocess(images),
    ).logits_per_image
    torch.testing.assert_close(found, expected)
