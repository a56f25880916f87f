"""Layers with random numbers: every coding, valid and of a sensible size."""

from __future__ import annotations

import pytest
import torch

from ditpress.errors import InputError
from ditpress.kernels.formats import FORMATS
from ditpress.kernels.packing import pack, unpack
from ditpress.kernels.random_weights import random_codes, random_linear


@pytest.mark.parametrize("count", [1, 7, 60, 63])
@pytest.mark.parametrize("entries", [2, 3, 4, 16, 64, 256])
def test_codes_are_as_pack_writes_them(entries: int, count: int) -> None:
    packed = random_codes(400, count, entries, torch.Generator().manual_seed(0))
    codes = unpack(packed, entries, count)
    assert torch.equal(pack(codes, entries), packed)
    share = torch.bincount(codes.flatten().int(), minlength=entries) / codes.numel()
    assert share.shape == (entries,)
    assert float((share * entries - 1).abs().max()) < 6 * (entries / codes.numel()) ** 0.5


@pytest.mark.parametrize("group", [16, 96])
@pytest.mark.parametrize("name", list(FORMATS))
def test_layers_run_and_keep_the_size_of_activations(name: str, group: int) -> None:
    layer = random_linear(96, 200, name, group, "int8", bias=False, fold_scales=True, seed=3)
    assert (layer.format, layer.group_size, layer.fold_scales) == (name, group, True)
    y = layer(torch.randn(50, 96, generator=torch.Generator().manual_seed(1)))
    assert 0.7 < float(y.std()) < 1.4
    again = random_linear(96, 200, name, group, "int8", bias=False, fold_scales=True, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), again.buffers(), strict=True))


def test_groups_must_fit() -> None:
    with pytest.raises(InputError, match="must divide in_features=90"):
        random_linear(90, 8, "vq-256x4", 45)
