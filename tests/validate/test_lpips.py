"""LPIPS on random networks: against torchmetrics' own, and against the paper's equation in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import lpips as theirs

from ditpress.errors import InputError
from ditpress.validate.lpips import ALEX, SCALE, SHIFT, VGG, Lpips, _build

SIDES = {"alex": 64, "vgg": 32}


def torchvision_alexnet() -> nn.Sequential:
    """``torchvision.models.alexnet().features``: the same modules at the same indices."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


def torchvision_vgg16() -> nn.Sequential:
    """``torchvision.models.vgg16().features``, its configuration D."""
    modules: list[nn.Module] = []
    channels = 3
    plan = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
    for width in plan:
        if width:
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            modules.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*modules)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Sequential, Path]]:
    """Networks with random weights and their files, with the classifier that torchvision's files have."""
    folder = tmp_path_factory.mktemp("lpips")
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, features in (("alex", torchvision_alexnet()), ("vgg", torchvision_vgg16())):
            state = {f"features.{key}": value for key, value in features.state_dict().items()}
            torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, folder / f"{name}.pth")
            save_file(state, folder / f"{name}.safetensors")
            found[name] = (features.eval(), folder / f"{name}.pth")
    return found


def pairs(side: int, channels: int = 3, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = torch.rand(count, channels, side, side, generator=generator)
    noise = torch.randn(first.shape, generator=generator) * torch.linspace(0.02, 0.3, count).view(-1, 1, 1, 1)
    return first, (first + noise).clamp(0, 1)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_is_torchmetrics_with_the_trained_weights(
    networks: dict[str, tuple[nn.Sequential, Path]], net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, path = networks[net]
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_args: features)
    reference = theirs._LPIPS(net=net)
    original, compressed = pairs(SIDES[net])
    with torch.inference_mode():
        expected = reference(original, compressed, normalize=True).flatten().double()
    lpips = Lpips(path)
    found = lpips.distances(original, compressed)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert (found.diff() > 0).all()  # more noise, farther
    assert lpips.num_features == sum(reference.chns)
    assert lpips.name == f"{net} {path.stem}"
    torch.testing.assert_close(Lpips(path.with_suffix(".safetensors")).distances(original, compressed), found)


def test_it_is_the_papers_equation(networks: dict[str, tuple[nn.Sequential, Path]]) -> None:
    """Equation 1 in numpy's float64, features from torchvision's own stack cut at its ReLUs."""
    features, path = networks["alex"]
    original, compressed = pairs(SIDES["alex"])
    lpips = Lpips(path)
    total = np.zeros(len(original))
    taps = (1, 4, 7, 9, 11)
    for tap, weight in zip(taps, lpips.weights, strict=True):
        units = []
        for images in (original, compressed):
            x = 2 * images - 1
            x = (x - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
            with torch.inference_mode():
                y = features[: tap + 1](x).double().numpy()
            units.append(y / np.sqrt((y**2).sum(1, keepdims=True) + 1e-8))
        squares = (units[0] - units[1]) ** 2
        total += (squares * weight.double().numpy()[:, None, None]).sum(1).mean((1, 2))
    np.testing.assert_allclose(lpips.distances(original, compressed).numpy(), total, rtol=1e-4)
    assert all((weight >= 0).all() and weight.max() > 0 for weight in lpips.weights)  # trained to be so


def test_the_stacks_have_torchvisions_layout() -> None:
    for layers, expected in ((ALEX, torchvision_alexnet()), (VGG, torchvision_vgg16())):
        modules, taps = _build(layers)
        assert [str(module) for module in modules] == [str(module) for module in expected][: len(modules)]
        assert all(isinstance(modules[tap], nn.ReLU) for tap in taps)


def test_grey_images_and_equal_images(networks: dict[str, tuple[nn.Sequential, Path]]) -> None:
    lpips = Lpips(networks["alex"][1])
    grey, other = pairs(40, channels=1)
    found = lpips.distances(grey, other)
    torch.testing.assert_close(
        found, lpips.distances(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    )
    assert lpips.distances(grey, grey).tolist() == [0.0] * len(grey)


def test_images_that_are_too_small_are_refused(networks: dict[str, tuple[nn.Sequential, Path]]) -> None:
    for net, side in (("alex", 31), ("vgg", 16)):
        lpips = Lpips(networks[net][1])
        assert lpips.distances(*pairs(side)).isfinite().all()
        with pytest.raises(InputError, match=f"at least {side} x {side} pixels"):
            lpips.distances(*pairs(side - 1))


def test_other_files_are_refused(tmp_path: Path, networks: dict[str, tuple[nn.Sequential, Path]]) -> None:
    with pytest.raises(InputError, match="no such file"):
        Lpips(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(networks["alex"][1].read_bytes()[:999])
    with pytest.raises(InputError, match="cannot be read"):
        Lpips(tmp_path / "broken.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="no state dict"):
        Lpips(tmp_path / "list.pth")
    torch.save({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="neither AlexNet nor VGG16"):
        Lpips(tmp_path / "other.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "part.pth")
    with pytest.raises(InputError, match="not those of alex"):
        Lpips(tmp_path / "part.pth")
