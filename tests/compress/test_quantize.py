"""The stage ``quantize``: what it asks of the formats and what it makes of the layers."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_dit import tiny_pipeline

from ditpress.compress import parse_stage
from ditpress.compress.quantize.stage import Quantize
from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.load import Denoiser, Role, load_denoiser
from ditpress.load.quantizer import DitpressConfig


@pytest.fixture
def denoiser() -> Denoiser:
    return load_denoiser(tiny_pipeline(seed=2))


def stage(**weights: object) -> Quantize:
    parsed = parse_stage({"quantize": {"weights": weights}})
    assert isinstance(parsed, Quantize)
    return parsed


@pytest.mark.parametrize("name", ["ternary", "ternary-2bit"])
@pytest.mark.parametrize("group", [8, "channel"])
def test_ternary_layers_hold_the_nearest_of_three_values(
    denoiser: Denoiser, name: str, group: int | str
) -> None:
    original = copy.deepcopy(denoiser.transformer)
    stage(format=name, group=group, fold_scales=False).apply(denoiser, {})
    layers = {
        n: m
        for n, m in denoiser.transformer.named_modules()
        if isinstance(m, QuantizedLinear) and m.format == name
    }
    assert layers
    for layer_name, layer in layers.items():
        weight = original.get_submodule(layer_name).weight.detach().float()
        groups = weight.reshape(layer.out_features, -1, layer.group_size)
        scale = layer.scale.float()[..., None]
        nearest = torch.where(groups.abs() > scale / 2, groups.sign(), 0.0) * scale
        torch.testing.assert_close(layer.dequantize(), nearest.reshape(weight.shape))
        assert 0.2 < float((layer.dequantize() == 0).float().mean()) < 0.7


def test_scales_are_folded_where_it_matters(denoiser: Denoiser) -> None:
    folded = stage(format="int4", group=8, fold_scales=True)
    formats = folded.formats(denoiser.anatomy, denoiser.transformer)
    roles = denoiser.anatomy.linears(denoiser.transformer)
    assert {layer.fold_scales for n, layer in formats.items() if roles[n] is Role.MODULATION} == {False}
    assert {layer.fold_scales for n, layer in formats.items() if roles[n] is not Role.MODULATION} == {True}
    for plain in (
        stage(format="int4", group="channel", fold_scales=True),
        stage(format="int4", group=8, fold_scales=False),
        folded.model_copy(update={"activations": "none"}),
    ):
        layers = plain.formats(denoiser.anatomy, denoiser.transformer).values()
        assert not any(layer.fold_scales for layer in layers)
    folded.apply(denoiser, {})
    for name, layer in formats.items():
        assert denoiser.transformer.get_submodule(name).fold_scales == layer.fold_scales
    written = DitpressConfig.of(denoiser.transformer).layers
    assert all(("fold_scales" in written[name]) == layer.fold_scales for name, layer in formats.items())


@pytest.mark.parametrize("name", ["vq-256x4", "vq-64x2"])
def test_vector_formats_are_refused_before_anything_changes(denoiser: Denoiser, name: str) -> None:
    before = copy.deepcopy(denoiser.transformer.state_dict())
    vectors = stage(format=name, group=8)
    for call in (lambda: vectors.plan(denoiser, denoiser.transformer), lambda: vectors.apply(denoiser, {})):
        with pytest.raises(InputError, match=rf"format {name} holds vectors .* such as int4"):
            call()
    after = denoiser.transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_setting_is_yes_or_no() -> None:
    with pytest.raises(InputError, match=r"quantize\.weights\.fold_scales: .* boolean, got 'fast'"):
        stage(format="int4", group=8, fold_scales="fast")
