"""A tiny random CLIP with tokenizer and processor, saved as a user's folder would be."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ditpress.validate.extractor import FeatureExtractor

START, END = "<|startoftext|>", "<|endoftext|>"


def save_clip(folder: Path, *, size: int = 28) -> Path:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = {letter: index for index, letter in enumerate(letters)}
    vocab |= {f"{letter}</w>": 26 + index for index, letter in enumerate(letters)}
    vocab |= {"on": 52, "one</w>": 53, START: 54, END: 55}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[("o", "n"), ("on", "e</w>")], model_max_length=12)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.2, 0.3, 0.4],
        image_std=[0.5, 0.6, 0.7],
    )
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    config = CLIPConfig(
        text_config={
            **shape,
            "vocab_size": len(vocab),
            "max_position_embeddings": 12,
            "bos_token_id": vocab[START],
            "eos_token_id": vocab[END],
            "pad_token_id": vocab[END],
        },
        vision_config={**shape, "image_size": size, "patch_size": 7, "num_channels": 3},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
        with torch.no_grad():  # the initialisation is so small that all images look alike
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="session")
def extractor(clip_folder: Path) -> FeatureExtractor:
    return FeatureExtractor(clip_folder)
